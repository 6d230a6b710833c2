#include "kernels.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include "kernels.inl"
#include "simd_neon.h"
#endif

namespace geode {

const Kernels* neon_kernels() {
#if defined(__ARM_FEATURE_DOTPROD)
    static constexpr Kernels table = kernels_of<Neon<false>>("neon");
    return &table;
#else
    return nullptr;
#endif
}

}  // namespace geode
