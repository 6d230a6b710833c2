#include "kernels.h"

#if defined(__AVXVNNI__)
#include "kernels.inl"
#include "simd_avx2.h"
#endif

namespace geode {

const Kernels* avxvnni_kernels() {
#if defined(__AVXVNNI__)
    static constexpr Kernels table = kernels_of<Avx2<true>>("avxvnni");
    return &table;
#else
    return nullptr;
#endif
}

}  // namespace geode
