#include "kernels.h"

#if defined(__AVX512VNNI__)
#include "kernels.inl"
#include "simd_avx512.h"
#endif

namespace geode {

const Kernels* avx512vnni_kernels() {
#if defined(__AVX512VNNI__)
    static constexpr Kernels table = kernels_of<Avx512<false>>("avx512vnni");
    return &table;
#else
    return nullptr;
#endif
}

}  // namespace geode
