#include "quantize.inl"

namespace geode {

const Quantizer& avx512_quantizer() { return QUANTIZER; }

}  // namespace geode
