#include "training.inl"
#include "simd_portable.h"

namespace geode {

const Trainer& portable_trainer() {
    static constexpr Trainer table = trainer_of<Portable>();
    return table;
}

}  // namespace geode
