// Which instruction sets this CPU and its system offer, and the kernels of one of them.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace geode {

// Names, the fastest first; "portable" is always the last.
std::vector<std::string> supported_isas();

// The kernels of `isa`, or of the fastest where it is nullptr or "". Throws std::invalid_argument with what there is.
const Kernels& kernels(const char* isa);

}  // namespace geode
