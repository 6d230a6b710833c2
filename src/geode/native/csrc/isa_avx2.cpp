#include "kernels.h"

#if defined(__AVX2__)
#include "kernels.inl"
#include "simd_avx2.h"
#endif

namespace geode {

const Kernels* avx2_kernels() {
#if defined(__AVX2__)
    static constexpr Kernels table = kernels_of<Avx2<false>>("avx2");
    return &table;
#else
    return nullptr;
#endif
}

}  // namespace geode
