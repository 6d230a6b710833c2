#include "quantize.inl"

namespace geode {

const Quantizer& portable_quantizer() { return QUANTIZER; }

}  // namespace geode
