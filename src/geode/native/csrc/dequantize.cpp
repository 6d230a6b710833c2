#include "dequantize.inl"
#include "layout.h"

namespace geode {

void dequantize(QType type, const uint8_t* bytes, size_t columns, float* out) { numbers_of(type, bytes, columns, out); }

}  // namespace geode
