#include "training.h"

#if defined(__AVX512BF16__)
#include "training.inl"
#include "simd_avx512.h"
#endif

namespace geode {

const Trainer& avx512_trainer() {
#if defined(__AVX512BF16__)
    static constexpr Trainer table = trainer_of<Avx512<true>>();
    return table;
#else
    return portable_trainer();
#endif
}

}  // namespace geode
