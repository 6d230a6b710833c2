// What this machine can do at most: the bars that speeds are measured against.
#pragma once
#include "kernels.h"
#include "pool.h"

namespace geode {

// Bytes per second that all threads read together from memory no cache holds.
double read_bandwidth(Pool& pool, const Kernels& kernels);

// Multiplications and additions per second of the product of `type`, its data in the nearest caches.
double peak_flops(Pool& pool, const Kernels& kernels, QType type);

}  // namespace geode
