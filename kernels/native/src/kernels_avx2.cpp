#if defined(__x86_64__)
#include "format.h"
#include "target.h"

TARGET_BEGIN(AVX2)
#include "simd_avx2.h"
//
#include "block_avx2.h"
//
#include "loops.h"
//
#include "kernels.h"
TARGET_END

namespace minimemo {
const Kernels* avx2_kernels() { return &kKernels; }
}  // namespace minimemo
#endif
