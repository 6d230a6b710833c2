#include "memory.h"

#include <cstdlib>
#include <new>

#ifdef _WIN32
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#if defined(GEODE_SANITIZED)
#include <sanitizer/asan_interface.h>
#endif
#endif

namespace geode {

#ifdef _WIN32

Buffer::Buffer(size_t size) : size_(size) {
    if (size == 0) return;
    data_ = static_cast<uint8_t*>(VirtualAlloc(nullptr, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE));
    if (!data_) throw std::bad_alloc();
}

void Buffer::release() {
    if (data_) VirtualFree(data_, 0, MEM_RELEASE);
    data_ = nullptr;
}

void forget_pages(const void*, size_t) {}

#else

namespace {
constexpr size_t HUGE_PAGE = size_t{1} << 21;

// AddressSanitizer knows no bounds inside of mappings, so they get a fence at their end.
#if defined(GEODE_SANITIZED)
constexpr size_t FENCE = 4096;
void raise_fence(const uint8_t* at, size_t size) { ASAN_POISON_MEMORY_REGION(at, size); }
void take_fence(const uint8_t* at, size_t size) { ASAN_UNPOISON_MEMORY_REGION(at, size); }
#else
constexpr size_t FENCE = 0;
void raise_fence(const uint8_t*, size_t) {}
void take_fence(const uint8_t*, size_t) {}
#endif

size_t whole_pages(size_t size) {
    const size_t page = sysconf(_SC_PAGESIZE);
    return (size + FENCE + page - 1) / page * page;
}

// Huge pages want an address that they divide; the slack in front costs no memory, for nobody touches it.
uint8_t* aligned(uint8_t* at, size_t size) {
    if (size < HUGE_PAGE) return at;
    auto address = reinterpret_cast<uintptr_t>(at);
    return at + ((HUGE_PAGE - address % HUGE_PAGE) % HUGE_PAGE);
}
}  // namespace

Buffer::Buffer(size_t size) : size_(size) {
    if (size == 0) return;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    const size_t room = whole_pages(size), mapped = size >= HUGE_PAGE ? room + HUGE_PAGE : room;
    void* at = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    uint8_t* begin = static_cast<uint8_t*>(at);
    data_ = aligned(begin, size);
    uint8_t *end = data_ + room, *limit = begin + mapped;
    if (size_t front = data_ - begin) munmap(begin, front);
    if (limit > end) munmap(end, limit - end);
    raise_fence(data_ + size, room - size);
#ifdef MADV_HUGEPAGE
    if (size >= HUGE_PAGE) madvise(data_, size, MADV_HUGEPAGE);
#endif
}

void Buffer::release() {
    if (!data_) return;
    const size_t room = whole_pages(size_);
    take_fence(data_ + size_, room - size_);
    munmap(data_, room);
    data_ = nullptr;
}

void forget_pages(const void* begin, size_t size) {
    const uintptr_t page = sysconf(_SC_PAGESIZE);
    uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
    uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + size) / page * page;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

#endif

void Buffer::grow(size_t size) {
    if (size > size_) *this = Buffer(size);
}

}  // namespace geode
