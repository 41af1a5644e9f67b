// What the file of an x86-64 variant begins with: it holds TARGET_BEGIN(instructions), its headers, TARGET_END. What lies
// between, and nothing before, is compiled for those instructions; who calls it asks the processor first. Headers of the
// standard library stand here, before all that.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_BEGIN(names) PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#else  // the warnings are about GCC's own headers before 13
#define TARGET_BEGIN(names) \
  PRAGMA(GCC target(names)) \
  PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized") PRAGMA(GCC diagnostic ignored "-Wuninitialized")
#define TARGET_END
#endif

#define AVX2 "avx2,fma,f16c"
#define AVX512 "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c"
#define AVX512_BFLOAT16 "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c"
#define AVX512_AMX "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16,avx2,fma,f16c"
