#include "kernels.h"

#if defined(__AVX512BF16__)
#include "kernels.inl"
#include "simd_avx512.h"
#endif

namespace geode {

const Kernels* avx512_kernels() {
#if defined(__AVX512BF16__)
    static constexpr Kernels table = kernels_of<Avx512<true>>("avx512");
    return &table;
#else
    return nullptr;
#endif
}

}  // namespace geode
