// Large aligned memory that comes zeroed and costs nothing until it is touched.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace geode {

class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t size);  // throws std::bad_alloc
    ~Buffer() { release(); }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    uint8_t* bytes() const { return data_; }
    float* floats() const { return reinterpret_cast<float*>(data_); }
    size_t size() const { return size_; }
    void grow(size_t size);  // contents are lost

private:
    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }
    void release();

    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// Tells the system that the whole pages inside a file's mapping are not needed in memory any more.
void forget_pages(const void* begin, size_t size);

}  // namespace geode
