#if defined(__x86_64__)
#include "base.h"
#include "ranges.h"
#include "target.h"

TARGET_BEGIN(AVX512)

namespace minimemo {

int64_t decode_avx512(Decoding& stream, const uint32_t* slots, int64_t vectors, const int32_t* places, int16_t* out) {
  __m512i states = _mm512_loadu_si512(stream.states);
  const uint8_t *at = stream.at, *end = stream.end;
  int64_t done = 0;
  for (; done < vectors && end - at >= 2 * kLanes; done++, places += kLanes) {
    const __m512i within = _mm512_and_si512(states, _mm512_set1_epi32(kSlots - 1));
    const __m512i slot = _mm512_i32gather_epi32(within, slots, 4);
    const __m512i code = _mm512_srli_epi32(slot, 2 * kBits + 1);
    if (_mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(kBeside))) break;
    const __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(slot, kBits), _mm512_set1_epi32(2 * kSlots - 1));
    states = _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32(states, kBits)),
                              _mm512_and_si512(slot, _mm512_set1_epi32(kSlots - 1)));
    const __mmask16 few = _mm512_cmplt_epu32_mask(states, _mm512_set1_epi32(kLeast));
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    states = _mm512_mask_or_epi32(states, few, _mm512_slli_epi32(states, 16), _mm512_maskz_expand_epi32(few, words));
    at += 2 * __builtin_popcount(few);
    const __m512i size = _mm512_srli_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(1)), 1);
    const __mmask16 even = _mm512_testn_epi32_mask(code, _mm512_set1_epi32(1));
    alignas(32) int16_t symbols[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(symbols),
                       _mm512_cvtepi32_epi16(_mm512_mask_sub_epi32(size, even, _mm512_setzero_si512(), size)));
    for (int i = 0; i < kLanes; i++) out[places[i]] = symbols[i];
  }
  _mm512_storeu_si512(stream.states, states);
  stream.at = at;
  return done;
}

int64_t encode_avx512(Encoding& stream, const uint32_t* shares, int64_t vectors, const int16_t* symbols) {
  __m512i states = _mm512_loadu_si512(stream.states);
  uint8_t* at = stream.at;
  int64_t done = 0;
  for (; done < vectors; done++) {
    symbols -= kLanes;
    const __m512i symbol = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(symbols)));
    const __m512i twice = _mm512_slli_epi32(_mm512_abs_epi32(symbol), 1);
    const __mmask16 above = _mm512_cmpgt_epi32_mask(symbol, _mm512_setzero_si512());
    const __m512i code = _mm512_min_epi32(_mm512_mask_sub_epi32(twice, above, twice, _mm512_set1_epi32(1)),
                                          _mm512_set1_epi32(kBeside));
    const __m512i share = _mm512_i32gather_epi32(code, shares, 4);
    const __m512i frequency = _mm512_and_si512(share, _mm512_set1_epi32(0xffff));
    if (_mm512_testn_epi32_mask(frequency, frequency) | _mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(kBeside))) break;
    const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(states, 32 - kBits), frequency);
    at -= 2 * __builtin_popcount(full);
    const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, states));
    _mm256_mask_storeu_epi16(at, __mmask16((1u << __builtin_popcount(full)) - 1), words);
    states = _mm512_mask_srli_epi32(states, full, states, 16);
    // A quotient has at most 20 bits: in single precision it is at most one off.
    const __m512 ratio = _mm512_div_ps(_mm512_cvtepu32_ps(states), _mm512_cvtepi32_ps(frequency));
    __m512i quotient = _mm512_cvttps_epi32(ratio);
    __m512i rest = _mm512_sub_epi32(states, _mm512_mullo_epi32(quotient, frequency));
    const __mmask16 under = _mm512_cmplt_epi32_mask(rest, _mm512_setzero_si512());
    const __mmask16 over = _mm512_cmpge_epi32_mask(rest, frequency);
    quotient = _mm512_mask_sub_epi32(quotient, under, quotient, _mm512_set1_epi32(1));
    quotient = _mm512_mask_add_epi32(quotient, over, quotient, _mm512_set1_epi32(1));
    rest = _mm512_mask_add_epi32(rest, under, rest, frequency);
    rest = _mm512_mask_sub_epi32(rest, over, rest, frequency);
    states = _mm512_add_epi32(_mm512_slli_epi32(quotient, kBits), _mm512_add_epi32(rest, _mm512_srli_epi32(share, 16)));
  }
  _mm512_storeu_si512(stream.states, states);
  stream.at = at;
  return done;
}

}  // namespace minimemo
TARGET_END
#endif
