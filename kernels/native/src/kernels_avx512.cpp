#if defined(__x86_64__)
#include "format.h"
#include "target.h"

TARGET_BEGIN(AVX512)
#include "simd_avx512.h"
//
#include "block.h"
//
#include "loops.h"
//
#include "kernels.h"
TARGET_END

namespace minimemo {
const Kernels* avx512_kernels() { return &kKernels; }
}  // namespace minimemo
#endif
