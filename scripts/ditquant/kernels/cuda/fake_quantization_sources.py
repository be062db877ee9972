"""CUDA sources of `fake_quantization`: what each thread does.

A kernel's constants (N, CHANNELS, SHIFTS, ...) come from its launch; `x`, `numbers`, `place` and
`shifts` are its arrays, see `fake_quantization.quantize_listed`.
"""

from __future__ import annotations

from ...activations.intervals import SMALLEST_RANGE

HEADER = f"""
// A layer's numbers: its extreme codes, its shift, and the scales of its groups of channels.
struct Layer {{
    float low, high, shift;
    const float* scales;
    int groups;
}};

__device__ Layer layer_at(const float* numbers, const int* place) {{
    const float* own = numbers + place[0];
    return {{own[0], own[1], own[2], own + 3, place[1]}};
}}

// One shift for all channels (SHIFTS 1), or one for each.
template <int SHIFTS>
__device__ float shift_of(const Layer& layer, const float* shifts, int channel) {{
    return SHIFTS > 1 ? shifts[channel] : layer.shift;
}}

// The largest value that any of WIDTH neighbouring threads has; a power of 2, at most 32.
template <int WIDTH>
__device__ float largest_of(float value) {{
    for (int distance = WIDTH / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance, WIDTH));
    return value;
}}

__device__ float scale_of(float largest, const Layer& layer) {{
    return fmaxf(largest, {SMALLEST_RANGE!r}f) / layer.high;
}}

template <int SHIFTS, typename T, int N>
__device__ float largest_in(
    const Values<T, N>& x, const Layer& layer, const float* shifts, int first
) {{
    float largest = 0.0f;
    #pragma unroll
    for (int j = 0; j < N; j++)
        largest = fmaxf(
            largest, fabsf(float(x.value[j]) - shift_of<SHIFTS>(layer, shifts, first + j)));
    return largest;
}}

template <int SHIFTS, typename T, int N>
__device__ Values<T, N> quantized(
    Values<T, N> x, float s, const Layer& layer, const float* shifts, int first
) {{
    #pragma unroll
    for (int j = 0; j < N; j++) {{
        const float z = shift_of<SHIFTS>(layer, shifts, first + j);
        const float code = fminf(fmaxf(rintf((float(x.value[j]) - z) / s), layer.low), layer.high);
        x.value[j] = T(code * s + z);
    }}
    return x;
}}
"""

# COUNT times N values. A thread's values are in one group of channels.
LISTED = """
    using Vector = Values<T, N>;
    const unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    const Layer layer = layer_at(numbers, place);
    if (i < COUNT) {
        const int channel = (i % (CHANNELS / N)) * N;
        const float s = layer.scales[channel / (CHANNELS / layer.groups)];
        reinterpret_cast<Vector*>(out)[i] = quantized<SHIFTS>(
            reinterpret_cast<const Vector*>(x)[i], s, layer, shifts, channel);
    }
"""

# LANES threads for each LENGTH adjacent channels of a token, which share a scale; a thread reads N
# values at once.
TOKENS = """
    using Vector = Values<T, N>;
    const unsigned int thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned int part = thread / LANES;
    const Layer layer = layer_at(numbers, place);
    // Every thread of a warp takes part in finding the largest value.
    const int count = part < PARTS ? LENGTH / N : 0;
    const int channel = (part % (CHANNELS / LENGTH)) * LENGTH;
    const size_t at = size_t(part) * (LENGTH / N);
    const auto* from = reinterpret_cast<const Vector*>(x) + at;
    auto* to = reinterpret_cast<Vector*>(out) + at;
    float largest = 0.0f;
    #pragma unroll 4
    for (int i = thread % LANES; i < count; i += LANES)
        largest = fmaxf(largest, largest_in<SHIFTS>(from[i], layer, shifts, channel + i * N));
    const float s = scale_of(largest_of<LANES>(largest), layer);
    #pragma unroll 4
    for (int i = thread % LANES; i < count; i += LANES)
        to[i] = quantized<SHIFTS>(from[i], s, layer, shifts, channel + i * N);
"""

# The largest |x - z| of each of PARTS parts of an entry of the batch, by a block of threads each.
# An entry has COUNT times N values.
EXTREMES = """
    using Vector = Values<T, N>;
    __shared__ float of_warps[THREADS / 32];
    const unsigned int entry = blockIdx.x / PARTS, part = blockIdx.x % PARTS;
    const Layer layer = layer_at(numbers, place);
    const auto* from = reinterpret_cast<const Vector*>(x) + size_t(entry) * COUNT;
    float largest = 0.0f;
    for (unsigned int i = part * THREADS + threadIdx.x; i < COUNT; i += PARTS * THREADS)
        largest = fmaxf(
            largest, largest_in<SHIFTS>(from[i], layer, shifts, (i % (CHANNELS / N)) * N));
    largest = largest_of<32>(largest);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
    __syncthreads();
    if (threadIdx.x < 32) {
        largest = largest_of<32>(threadIdx.x < THREADS / 32 ? of_warps[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) out[blockIdx.x] = largest;
    }
"""

ENTRIES = """
    using Vector = Values<T, N>;
    const unsigned int i = blockIdx.x * blockDim.x + threadIdx.x, entry = blockIdx.y;
    const Layer layer = layer_at(numbers, place);
    float largest = 0.0f;
    for (int part = threadIdx.x % 32; part < PARTS; part += 32)
        largest = fmaxf(largest, extremes[entry * PARTS + part]);
    const float s = scale_of(largest_of<32>(largest), layer);
    if (i < COUNT) {
        const size_t at = size_t(entry) * COUNT + i;
        const int channel = (i % (CHANNELS / N)) * N;
        reinterpret_cast<Vector*>(out)[at] = quantized<SHIFTS>(
            reinterpret_cast<const Vector*>(x)[at], s, layer, shifts, channel);
    }
"""
