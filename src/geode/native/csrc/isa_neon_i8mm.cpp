#include "kernels.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "kernels.inl"
#include "simd_neon.h"
#endif

namespace geode {

const Kernels* neon_i8mm_kernels() {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    static constexpr Kernels table = kernels_of<Neon<true>>("neon_i8mm");
    return &table;
#else
    return nullptr;
#endif
}

}  // namespace geode
