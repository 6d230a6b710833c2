#include "training.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include "training.inl"
#include "simd_neon.h"
#endif

namespace geode {

const Trainer& neon_trainer() {
#if defined(__ARM_FEATURE_DOTPROD)
    static constexpr Trainer table = trainer_of<Neon<false>>();
    return table;
#else
    return portable_trainer();
#endif
}

}  // namespace geode
