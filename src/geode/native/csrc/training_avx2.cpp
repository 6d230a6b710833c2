#include "training.h"

#if defined(__AVX2__)
#include "training.inl"
#include "simd_avx2.h"
#endif

namespace geode {

const Trainer& avx2_trainer() {
#if defined(__AVX2__)
    static constexpr Trainer table = trainer_of<Avx2<false>>();
    return table;
#else
    return portable_trainer();
#endif
}

}  // namespace geode
