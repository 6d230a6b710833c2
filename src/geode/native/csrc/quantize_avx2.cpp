#include "quantize.inl"

namespace geode {

const Quantizer& avx2_quantizer() { return QUANTIZER; }

}  // namespace geode
