#include "cpu.h"

#include <cstdint>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#define GEODE_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#define GEODE_ARM 1
#endif

#if GEODE_X86 && defined(_MSC_VER)
#include <intrin.h>
#elif GEODE_X86
#include <cpuid.h>
#endif
#if GEODE_X86 && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if GEODE_ARM && defined(__linux__)
#include <sys/auxv.h>
#elif GEODE_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#elif GEODE_ARM && defined(_WIN32)
#include <windows.h>
#endif

namespace geode {

namespace {

bool always() { return true; }

#if GEODE_X86

struct Registers {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t part) {
    Registers r;
#if defined(_MSC_VER)
    int raw[4];
    __cpuidex(raw, static_cast<int>(leaf), static_cast<int>(part));
    r = {uint32_t(raw[0]), uint32_t(raw[1]), uint32_t(raw[2]), uint32_t(raw[3])};
#else
    __get_cpuid_count(leaf, part, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
    return r;
}

// The registers that the system saves when it switches threads: XCR0.
uint64_t saved_state() {
    if (!(cpuid(1, 0).ecx >> 27 & 1)) return 0;
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
#endif
}

constexpr bool has(uint64_t bits, uint64_t all) { return (bits & all) == all; }
constexpr uint32_t bit(int n) { return uint32_t{1} << n; }
constexpr uint64_t YMM_STATE = 0x6, ZMM_STATE = 0xe6, TILE_STATE = 0x60000;

bool avx2() {
    return has(saved_state(), YMM_STATE) && has(cpuid(1, 0).ecx, bit(12) | bit(28) | bit(29))  // FMA, AVX, F16C
           && has(cpuid(7, 0).ebx, bit(5));
}

bool avxvnni() { return avx2() && has(cpuid(7, 1).eax, bit(4)); }

bool avx512vnni() {
    return avx2() && has(saved_state(), ZMM_STATE) && has(cpuid(7, 0).ecx, bit(11))         // VNNI
           && has(cpuid(7, 0).ebx, bit(16) | bit(17) | bit(30) | bit(31));                  // F, DQ, BW, VL
}

bool avx512() { return avx512vnni() && has(cpuid(7, 1).eax, bit(5)); }  // BF16

#if defined(__linux__)
constexpr int ARCH_GET_XCOMP_SUPP = 0x1021, ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;

bool amx() {
    uint64_t features = 0;
    return avx512() && has(saved_state(), TILE_STATE) && has(cpuid(7, 0).edx, bit(22) | bit(24))  // BF16, TILE
           && syscall(SYS_arch_prctl, ARCH_GET_XCOMP_SUPP, &features) == 0 && has(features, TILE_STATE);
}

// A process must ask before its first use of a tile; its threads have the answer too.
bool allow_amx() { return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0; }
#else
bool amx() { return avx512() && has(saved_state(), TILE_STATE) && has(cpuid(7, 0).edx, bit(22) | bit(24)); }
bool allow_amx() { return true; }
#endif

#elif GEODE_ARM

#if defined(__linux__)
bool neon() { return getauxval(AT_HWCAP) >> 20 & 1; }          // HWCAP_ASIMDDP
bool neon_i8mm() { return neon() && (getauxval(AT_HWCAP2) >> 13 & 1); }  // HWCAP2_I8MM
#elif defined(__APPLE__)
bool feature(const char* name) {
    int there = 0;
    size_t size = sizeof there;
    return sysctlbyname(name, &there, &size, nullptr, 0) == 0 && there;
}
bool neon() { return feature("hw.optional.arm.FEAT_DotProd"); }
bool neon_i8mm() { return neon() && feature("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
bool neon() { return IsProcessorFeaturePresent(43); }  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
bool neon_i8mm() { return false; }                     // older systems cannot say
#else
bool neon() { return false; }
bool neon_i8mm() { return false; }
#endif

#endif

struct Isa {
    const char* name;
    const Kernels* (*table)();
    bool (*present)();
    bool (*allow)();  // what the system must be asked before the first use

    bool usable() const { return present() && table(); }
};

constexpr Isa ISAS[] = {
#if GEODE_X86
    {"amx", amx_kernels, amx, allow_amx},
    {"avx512", avx512_kernels, avx512, always},
    {"avx512vnni", avx512vnni_kernels, avx512vnni, always},
    {"avxvnni", avxvnni_kernels, avxvnni, always},
    {"avx2", avx2_kernels, avx2, always},
#elif GEODE_ARM
    {"neon_i8mm", neon_i8mm_kernels, neon_i8mm, always},
    {"neon", neon_kernels, neon, always},
#endif
    {"portable", portable_kernels, always, always},
};

std::string listed(const std::vector<std::string>& names) {
    std::string out;
    for (const auto& name : names) out += (out.empty() ? "" : ", ") + name;
    return out;
}

}  // namespace

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : ISAS)
        if (isa.usable()) names.push_back(isa.name);
    return names;
}

const Kernels& kernels(const char* name) {
    const std::string wanted = name ? name : "";
    for (const Isa& isa : ISAS)
        if ((wanted.empty() || wanted == isa.name) && isa.usable() && isa.allow()) return *isa.table();
    throw std::invalid_argument("Expected an instruction set that this CPU, its system and this build have, one of " +
                                listed(supported_isas()) + "; got '" + wanted +
                                "'. Choose one of these, or none and the fastest is taken.");
}

}  // namespace geode
