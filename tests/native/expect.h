// What the checks share: what is wrong is told, 20 times at most, and counted.
#pragma once
#include <cstdio>
#include <string>

inline int failures = 0;

inline void expect(bool good, const std::string& what) {
    if (!good && ++failures <= 20) std::printf("WRONG: %s\n", what.c_str());
}
