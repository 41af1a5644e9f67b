#include "simd_portable.h"
//
#include "block.h"
//
#include "loops.h"
//
#include "kernels.h"

namespace minimemo {
const Kernels* portable_kernels() { return &kKernels; }
}  // namespace minimemo
