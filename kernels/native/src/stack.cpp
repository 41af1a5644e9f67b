// See stack.h. Phases that are worth two threads are cut by for_each; what lies between runs on the caller's.
#include "stack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "product.h"

namespace minimemo {
namespace {

// Dimension i pairs with i + dim / 2 (arXiv 2104.09864).
void rotate(float* x, const float* cosines, const float* sines, int dim) {
  const int half = dim / 2;
  for (int i = 0; i < half; i++) {
    const float first = x[i], second = x[i + half];
    x[i] = first * cosines[i] - second * sines[i];
    x[i + half] = second * cosines[i + half] + first * sines[i + half];
  }
}

struct Step {
  const Kernels& kernels;
  const AttentionKernels& attention;
  const StackModel& m;
  const StackCall& c;
  const Work work;
  const int64_t pass;  // rows of one product
  float *normed, *qkv, *mixed, *added, *gate_up, *gated;  // the last two where rows are few
  std::vector<int64_t> positions;
  std::vector<Segment> segments;
  int64_t shared = 0;  // tokens of the prefix
  const bool many;  // whether what is gated goes straight into the rounded rows of a product
  Memory numbers;
  uint8_t *memory, *rounded;  // of a product, and of the one after it where they are many
  Workspace workspace;

  Step(const Kernels& kernels, const AttentionKernels& attention, const StackModel& model, const StackCall& call)
      : kernels(kernels),
        attention(attention),
        m(model),
        c(call),
        work(work_of(call.tokens)),
        pass(std::min(call.tokens, product(model.layers[0].down).pass())),
        many(all_many()) {
    size_t most = 0;
    for (int i = 0; i < m.count; i++)
      for (const StackMatrix* matrix : {&m.layers[i].qkv, &m.layers[i].out, &m.layers[i].gate_up, &m.layers[i].down})
        most = std::max(most, product(*matrix).bytes(pass));
    const auto cut = [&](uint8_t* at) {
      Cutter cutter{at};
      normed = cutter.take<float>(c.tokens * m.hidden);
      qkv = cutter.take<float>(c.tokens * (m.heads + 2 * m.kv_heads) * m.dim);
      mixed = cutter.take<float>(c.tokens * m.heads * m.dim);
      added = cutter.take<float>(c.tokens * m.hidden);
      gate_up = cutter.take<float>(many ? 0 : pass * 2 * m.intermediate);
      gated = cutter.take<float>(many ? 0 : pass * m.intermediate);
      memory = cutter.take<uint8_t>(int64_t(most));
      rounded = cutter.take<uint8_t>(many ? int64_t(most) : 0);
      return cutter.used;
    };
    numbers = allocate(cut(nullptr));
    cut(numbers.get());
    if (c.prefix) shared = packed_tokens(*c.prefix) + c.prefix->length;
    for (int64_t r = 0; r < c.row_count; r++)
      for (int64_t i = 0; i < c.rows[r].count; i++)
        positions.push_back(shared + packed_tokens(c.rows[r]) + c.rows[r].length + i);
  }

  static int64_t packed_tokens(const StackCache& cache) { return cache.packed ? cache.packed->tokens : 0; }

  Product product(const StackMatrix& matrix) const {
    return Product(kernels, matrix.parts, int(matrix.count), numbers_of(c.fine != 0, c.tokens), c.threads);
  }

  bool all_many() const {
    for (int i = 0; i < m.count; i++) {
      const StackLayer& layer = m.layers[i];
      if (layer.gate_up.count > 2 || m.intermediate % kBlock || layer.gate_up.bias || !product(layer.gate_up).many() || !product(layer.down).many())
        return false;
    }
    return true;
  }

  // body(first, last) over all tokens, some at a time where there are many.
  template <typename Body>
  void tokens(Body body) const {
    constexpr int64_t kTokens = 16;
    for_each(work, c.threads, (c.tokens + kTokens - 1) / kTokens, [&](int64_t piece) {
      body(piece * kTokens, std::min((piece + 1) * kTokens, c.tokens));
    });
  }

  void multiply(const StackMatrix& matrix, const float* x, float* out, int64_t rows) {
    product(matrix).run(memory, work, x, rows, matrix.bias, out);
  }

  void norm(const float* x, const float* weight, float* out) const {
    tokens([&](int64_t first, int64_t last) {
      for (int64_t at = first * m.hidden; at < last * m.hidden; at += m.hidden)
        kernels.rms_norm(x + at, weight, m.norm_eps, m.hidden, out + at);
    });
  }

  // x += part, which is normalized first where the model does so.
  void add(float* part, const float* weight) const {
    if (weight) norm(part, weight, part);
    tokens([&](int64_t first, int64_t last) {
      for (int64_t i = first * m.hidden; i < last * m.hidden; i++) c.x[i] += part[i];
    });
  }

  void write(void* to, bool bfloat16, int64_t at, const float* from) const {
    if (bfloat16)
      for (int d = 0; d < m.dim; d++) static_cast<uint16_t*>(to)[at + d] = to_bfloat16(from[d]);
    else
      std::memcpy(static_cast<float*>(to) + at, from, size_t(m.dim) * 4);
  }

  // Queries and keys of one token normalized and rotated, its keys and values written into its cache. Keys
  // that a memory is to hold are rounded to the cache's type before they are rotated too, as it will give them back;
  // others only after it: rounding twice costs identical text.
  void store(const StackLayer& layer, int index, const StackCache& cache, int64_t slot, int64_t token) {
    const float* cosines = c.cosines[layer.rotation] + token * m.dim;
    const float* sines = c.sines[layer.rotation] + token * m.dim;
    float* q = qkv + token * (m.heads + 2 * m.kv_heads) * m.dim;
    float* k = q + m.heads * m.dim;
    const float* v = k + m.kv_heads * m.dim;
    for (int h = 0; h < m.heads + m.kv_heads; h++) {
      float* head = q + h * m.dim;
      const float* weight = h < m.heads ? layer.q_norm : layer.k_norm;
      if (weight) kernels.rms_norm(head, weight, m.norm_eps, m.dim, head);
      if (h >= m.heads) {
        if (c.raw_keys) {
          write(c.raw_keys, cache.bfloat16, ((int64_t(index) * m.kv_heads + h - m.heads) * c.tokens + token) * m.dim, head);
          for (int d = 0; cache.bfloat16 && d < m.dim; d++) head[d] = from_bfloat16(to_bfloat16(head[d]));
        }
      }
      rotate(head, cosines, sines, m.dim);
    }
    for (int g = 0; g < m.kv_heads; g++) {
      const int64_t at = index * cache.layer_stride + g * cache.head_stride + slot * m.dim;
      write(cache.keys, cache.bfloat16, at, k + g * m.dim);
      write(cache.values, cache.bfloat16, at, v + g * m.dim);
    }
  }

  void store(const StackLayer& layer, int index) {
    tokens([&](int64_t first, int64_t last) {
      int64_t begin = 0;
      for (int64_t r = 0; r < c.row_count; begin += c.rows[r++].count) {
        const StackCache& cache = c.rows[r];
        for (int64_t t = std::max(first, begin); t < std::min(last, begin + cache.count); t++)
          store(layer, index, cache, cache.length + t - begin, t);
      }
    });
  }

  // Adds what tokens first .. last - 1 see of a cache: its packed tokens, from position `start` on, then `keys` dense ones.
  void see(const StackCache& cache, int index, int64_t keys, int64_t start, int64_t first, int64_t last) {
    const auto add = [&](Segment s) {
      s.start = start, s.first_row = first, s.last_row = last;
      segments.push_back(s);
      start += s.tokens;
    };
    if (cache.packed) {
      Segment s = *cache.packed;
      const int64_t head = int64_t(index) * m.kv_heads;
      s.keys = static_cast<const uint8_t*>(s.keys) + head * s.key_stride;
      s.values = static_cast<const uint8_t*>(s.values) + head * s.value_stride;
      s.key_scale += head * s.key_param_stride;
      s.key_low += head * s.key_param_stride;
      s.value_scale += head * s.value_param_stride;
      s.value_low += head * s.value_param_stride;
      add(s);
    }
    if (keys) {
      Segment s{};
      const int64_t at = index * cache.layer_stride * (cache.bfloat16 ? 2 : 4);
      s.store = cache.bfloat16 ? kStoreBfloat16 : kStoreFloat;
      s.keys = static_cast<const uint8_t*>(cache.keys) + at;
      s.values = static_cast<const uint8_t*>(cache.values) + at;
      s.key_stride = s.value_stride = cache.head_stride;
      s.tokens = keys;
      add(s);
    }
  }

  // Whether rows `first` to `next` are tokens one after the other of one cache, a step and its drafts, which read their
  // keys together. Each sees what it would see as the only row, in the same order.
  bool continues(const StackLayer& layer, const Attention& job, int64_t first, int64_t next) const {
    const StackCache &a = c.rows[first], &b = c.rows[next];
    const bool alike = !a.bfloat16 || (attention.alike && m.dim % 64 == 0 && c.tokens <= kFewRows);
    return alike && !layer.window && !a.packed && a.keys == b.keys && a.count == 1 && b.count == 1 &&
           b.length == a.length + next - first && cut_alike(job, a.length + 1, next - first + 1);
  }

  // False without memory for partial results.
  bool attend(const StackLayer& layer, int index) {
    segments.clear();
    if (c.prefix) see(*c.prefix, index, c.prefix->length, 0, 0, c.tokens);
    Attention job{};
    job.q = qkv;
    job.q_row = int64_t(m.heads + 2 * m.kv_heads) * m.dim;
    job.out = mixed;
    job.out_row = int64_t(m.heads) * m.dim;
    job.q_head = job.out_head = m.dim;
    job.kv_heads = m.kv_heads;
    job.group = m.heads / m.kv_heads;
    job.dim = m.dim;
    int64_t first = 0;
    for (int64_t r = 0, next; r < c.row_count; r = next) {
      for (next = r + 1; next < c.row_count && continues(layer, job, r, next);) next++;
      const StackCache& row = c.rows[next - 1];
      const int64_t last = first + (next - r > 1 ? next - r : row.count);
      see(row, index, row.length + row.count, shared, first, last);
      first = last;
    }
    job.rows = c.tokens;
    job.scale = m.scale;
    job.positions = positions.data();
    job.window = layer.window ? layer.window : kNoWindow;
    job.segments = segments.data();
    job.count = int32_t(segments.size());
    return minimemo::attend(attention, job, work, c.threads, workspace);
  }

  // The same of many rows: what is gated goes from a thread's own cache into the rounded rows of the next product.
  void feed_many_forward(const StackLayer& layer) {
    constexpr int64_t kColumns = 4 * kBlock;
    Product ahead = product(layer.gate_up), down = product(layer.down);
    for (int64_t row = 0; row < c.tokens; row += pass) {
      const int64_t rows = std::min(c.tokens - row, pass);
      ahead.bind(memory, rows);
      down.bind(rounded, rows);
      ahead.quantize(work, normed + row * m.hidden);
      for_each(work, c.threads, (m.intermediate + kColumns - 1) / kColumns, [&](int64_t piece) {
        const int64_t first = piece * kColumns, last = std::min<int64_t>(first + kColumns, m.intermediate);
        thread_local std::vector<float> both;  // kept: 256 KiB, of the second-level cache
        both.resize(size_t(rows) * 2 * kColumns);
        ahead.multiply_rows(first, last, both.data(), 2 * kColumns);
        ahead.multiply_rows(m.intermediate + first, m.intermediate + last, both.data() + kColumns, 2 * kColumns);
        for (float* gate = both.data(); gate < both.data() + rows * 2 * kColumns; gate += 2 * kColumns)
          kernels.gate(gate, gate + kColumns, m.gate, last - first, gate);
        down.round_columns(both.data(), 2 * kColumns, first, last);
      });
      down.multiply(work, layer.down.bias, added + row * m.hidden);
    }
  }

  // The gated activations are computed and rounded to integers by all threads, some columns each.
  void feed_forward(const StackLayer& layer) {
    if (many) return feed_many_forward(layer);
    for (int64_t row = 0; row < c.tokens; row += pass) {
      const int64_t rows = std::min(c.tokens - row, pass);
      multiply(layer.gate_up, normed + row * m.hidden, gate_up, rows);
      Product down = product(layer.down);
      down.bind(memory, rows);
      constexpr int64_t kColumns = 16 * kBlock;
      for_each(work, c.threads, (m.intermediate + kColumns - 1) / kColumns, [&](int64_t piece) {
        const int64_t first = piece * kColumns, last = std::min<int64_t>(first + kColumns, m.intermediate);
        for (int64_t t = 0; t < rows; t++) {
          const float* gate = gate_up + t * 2 * m.intermediate + first;
          kernels.gate(gate, gate + m.intermediate, m.gate, last - first, gated + t * m.intermediate + first);
        }
        down.quantize_columns(gated, first, last);
      });
      down.sum();
      down.multiply(work, layer.down.bias, added + row * m.hidden);
    }
  }

  bool run() {
    for (int index = 0; index < m.count; index++) {
      const StackLayer& layer = m.layers[index];
      norm(c.x, layer.attention_norm, normed);
      multiply(layer.qkv, normed, qkv, c.tokens);
      store(layer, index);
      if (!attend(layer, index)) return false;
      multiply(layer.out, mixed, added, c.tokens);
      add(added, layer.post_attention_norm);
      norm(c.x, layer.mlp_norm, normed);
      feed_forward(layer);
      add(added, layer.post_mlp_norm);
    }
    return true;
  }
};

}  // namespace
}  // namespace minimemo

using namespace minimemo;

// Returns 0, or 1 without memory. Every pointer, shape and stride is the caller's word.
EXPORT int minimemo_stack(int variant, int attention_variant, const StackModel* model, const StackCall* call) {
  Step step(*runnable(variant), *attention_kernels(attention_variant), *model, *call);
  return step.numbers && step.run() ? 0 : 1;
}
