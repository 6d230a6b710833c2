#include "quantize.h"

namespace geode {

const Quantizer& quantizer(const std::string& isa) {
    if (isa == "amx" || isa.rfind("avx512", 0) == 0) return avx512_quantizer();
    if (isa.rfind("avx", 0) == 0) return avx2_quantizer();
    return portable_quantizer();
}

}  // namespace geode
