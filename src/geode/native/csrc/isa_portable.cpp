#include "kernels.inl"
#include "simd_portable.h"

namespace geode {

const Kernels* portable_kernels() {
    static constexpr Kernels table = kernels_of<Portable>("portable");
    return &table;
}

}  // namespace geode
