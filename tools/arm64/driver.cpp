// Calls the native library's portable kernels on numbers made here, and prints a hash of what each gives.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../kernels/native/src/attention.h"

extern "C" {
int minimemo_abi();
const char* minimemo_variant(int);
void minimemo_start(void*);
int64_t minimemo_plan(const int8_t*, const float*, const float*, int64_t, int64_t, int, void*, int);
void minimemo_pack(const uint8_t*, const int8_t*, const float*, const float*, uint8_t*, int);
int minimemo_check(const uint8_t*, int64_t);
int minimemo_linear(int, const uint8_t* const*, int, const float*, int64_t, const float*, float*, int, int);
void minimemo_expand(int, const uint8_t*, const int64_t*, int64_t, int64_t, void*, int, int64_t, int);
void minimemo_rms_norm(int, const float*, const float*, float, int64_t, int64_t, float*);
int minimemo_attention(int, minimemo::Attention*, int64_t, int);
int minimemo_frequencies(int, const float*, int64_t, float*, int64_t, int64_t, int64_t, int64_t, int);
}

namespace {

uint64_t state = 1;
float number() {  // -1 .. 1
  state = state * 6364136223846793005u + 1442695040888963407u;
  return float(int32_t(state >> 32)) / 2147483648.0f;
}
std::vector<float> numbers(int64_t count) {
  std::vector<float> all(count);
  for (float& x : all) x = number();
  return all;
}
void tell(const char* what, const void* bytes, size_t count) {
  uint64_t hash = 14695981039346656037u;
  for (size_t i = 0; i < count; i++) hash = (hash ^ static_cast<const uint8_t*>(bytes)[i]) * 1099511628211u;
  std::printf("%s %016llx\n", what, static_cast<unsigned long long>(hash));
}
void tell(const char* what, const std::vector<float>& x) { tell(what, x.data(), x.size() * sizeof(float)); }

void products(int bits, int group) {
  const int64_t rows = 77, columns = 192, n = 5;
  std::vector<int8_t> codes(rows * columns);
  const int half = 1 << (bits - 1);
  for (int8_t& c : codes) c = int8_t(std::lrint(number() * (half - 1)));
  const auto scales = numbers(rows * columns / group), x = numbers(n * columns), bias = numbers(rows);
  uint8_t header[64];
  const int64_t bytes = minimemo_plan(codes.data(), scales.data(), nullptr, rows, columns, group, header, 2);
  std::vector<uint64_t> room(bytes / 8 + 9);
  uint8_t* matrix = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
  minimemo_pack(header, codes.data(), scales.data(), nullptr, matrix, 2);
  if (!minimemo_check(matrix, bytes)) std::printf("no packed matrix\n");
  std::vector<float> out(n * rows), wide(rows * columns);
  for (int fine = 0; fine < 2; fine++) {
    minimemo_linear(0, &matrix, 1, x.data(), n, bias.data(), out.data(), fine, 2);
    tell(fine ? "linear, fine" : "linear", out);
  }
  minimemo_expand(0, matrix, nullptr, 0, rows, wide.data(), 0, columns, 2);
  tell("expand", wide);
}

void attends() {
  const int heads = 2, group = 3, dim = 32, rows = 9, tokens = 130;
  const auto q = numbers(heads * group * rows * dim), keys = numbers(heads * tokens * dim);
  const auto values = numbers(heads * tokens * dim);
  std::vector<float> out(q.size()), lse(heads * group * rows);
  std::vector<int64_t> positions(rows);
  for (int row = 0; row < rows; row++) positions[row] = tokens - rows + row;
  struct {
    minimemo::Attention job{};
    minimemo::Segment segment{};
  } all;
  minimemo::Segment& s = all.segment;
  s.store = 0, s.keys = keys.data(), s.values = values.data(), s.key_stride = s.value_stride = tokens * dim;
  s.tokens = tokens, s.last_row = rows;
  minimemo::Attention& job = all.job;
  job.q = q.data(), job.q_head = rows * dim, job.q_row = dim, job.out = out.data(), job.out_head = rows * dim;
  job.out_row = dim, job.lse = lse.data(), job.kv_heads = heads, job.group = group, job.dim = dim, job.rows = rows;
  job.scale = 0.17f, job.positions = positions.data(), job.window = 100, job.segments = &s, job.count = 1;
  std::printf("attention returns %d\n", minimemo_attention(0, &job, sizeof(minimemo::Attention) + sizeof s, 2));
  // exp is the compiler's: its last bits may differ from one machine to the other
  for (float& x : out) x = std::round(x * 1e5f);
  tell("attention", out);
}

}  // namespace

int main() {
  minimemo_start(nullptr);
  std::printf("abi %d, %s\n", minimemo_abi(), minimemo_variant(0));
  products(8, 32), products(4, 32), products(6, 16);
  const auto x = numbers(4 * 96), weight = numbers(96), matrix = numbers(16 * 16);
  std::vector<float> out(x.size());
  minimemo_rms_norm(0, x.data(), weight.data(), 1e-6f, 4, 96, out.data());
  tell("rms_norm", out);
  auto planes = numbers(2 * 48 * 24);
  minimemo_frequencies(0, matrix.data(), 16, planes.data(), 2, 48 * 24, 3, 24, 2);
  tell("frequencies", planes);
  attends();
}
