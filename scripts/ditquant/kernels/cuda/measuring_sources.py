"""CUDA sources of `measuring`: what each block of threads finds, and putting it together.

Names in capitals are template arguments, see `measuring`.
"""

from __future__ import annotations

# What a block found lies in `out`, floats by their bits:
#   columns  (SLABS, 3, CHANNELS)  minimum, maximum and sum of each channel over the slab's rows
#   squares  (SLABS * CHUNKS,)     sums of squares
#   counts   (SLABS * CHUNKS, BINS)
#   tokens   (CHUNKS, ROWS)        each row's largest |x| in the block's channels
_OFFSETS = """
    const float INFINITE = __int_as_float(0x7f800000);
    const int CHUNKS = CHANNELS / (VECTORS * N), PARTS = SLABS * CHUNKS;
    const size_t SQUARES = size_t(SLABS) * 3 * CHANNELS;
    const size_t COUNTS = SQUARES + PARTS, TOKENS = COUNTS + size_t(PARTS) * BINS;
"""

MEASURE = (
    _OFFSETS
    + """
    const int WARPS = THREADS / 32, ROWS_AT_ONCE = THREADS / VECTORS, WIDTH = VECTORS * N;
    __shared__ int counts[WARPS][BINS];
    __shared__ float lows[WARPS][WIDTH], highs[WARPS][WIDTH], sums[WARPS][WIDTH], squared[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, vector = threadIdx.x % VECTORS;
    const int chunk = blockIdx.x, slab = blockIdx.y, part = slab * CHUNKS + chunk;
    for (int i = threadIdx.x; i < WARPS * BINS; i += THREADS) (&counts[0][0])[i] = 0;
    __syncthreads();

    float low[N], high[N], sum[N], squares = 0.0f;
    #pragma unroll
    for (int j = 0; j < N; j++) { low[j] = INFINITE; high[j] = -INFINITE; sum[j] = 0.0f; }
    const int end = min(ROWS, (slab + 1) * SLAB_ROWS);
    for (int first = slab * SLAB_ROWS; first < end; first += ROWS_AT_ONCE) {
        const int row = first + threadIdx.x / VECTORS;
        float largest = 0.0f;
        if (row < end) {
            const size_t at = (size_t(row) * CHANNELS + chunk * WIDTH) / N + vector;
            const auto values = reinterpret_cast<const Values<T, N>*>(x)[at];
            #pragma unroll
            for (int j = 0; j < N; j++) {
                const float value = float(values.value[j]);
                low[j] = fminf(low[j], value);
                high[j] = fmaxf(high[j], value);
                sum[j] += value;
                squares += value * value;
                largest = fmaxf(largest, fabsf(value));
                atomicAdd(&counts[warp][bin_number(value)], 1);
            }
        }
        // Every thread of a warp takes part, with a row or without.
        for (int distance = VECTORS / 2; distance > 0; distance /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
        if (row < end && vector == 0)
            out[TOKENS + size_t(chunk) * ROWS + row] = __float_as_int(largest);
    }

    #pragma unroll
    for (int j = 0; j < N; j++) {
        for (int distance = 16; distance >= VECTORS; distance /= 2) {
            low[j] = fminf(low[j], __shfl_xor_sync(0xffffffffu, low[j], distance));
            high[j] = fmaxf(high[j], __shfl_xor_sync(0xffffffffu, high[j], distance));
            sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], distance);
        }
        if (lane < VECTORS) {
            lows[warp][vector * N + j] = low[j];
            highs[warp][vector * N + j] = high[j];
            sums[warp][vector * N + j] = sum[j];
        }
    }
    for (int distance = 16; distance > 0; distance /= 2)
        squares += __shfl_xor_sync(0xffffffffu, squares, distance);
    if (lane == 0) squared[warp] = squares;
    __syncthreads();

    for (int i = threadIdx.x; i < WIDTH; i += THREADS) {
        float lowest = lows[0][i], highest = highs[0][i], total = sums[0][i];
        for (int w = 1; w < WARPS; w++) {
            lowest = fminf(lowest, lows[w][i]);
            highest = fmaxf(highest, highs[w][i]);
            total += sums[w][i];
        }
        int* column = out + size_t(slab) * 3 * CHANNELS + chunk * WIDTH + i;
        column[0] = __float_as_int(lowest);
        column[CHANNELS] = __float_as_int(highest);
        column[2 * CHANNELS] = __float_as_int(total);
    }
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
        int total = 0;
        for (int w = 0; w < WARPS; w++) total += counts[w][bin];
        out[COUNTS + size_t(part) * BINS + bin] = total;
    }
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int w = 0; w < WARPS; w++) total += squared[w];
        out[SQUARES + part] = __float_as_int(total);
    }
"""
)

# A row of `out` for each array: minimum, maximum and sum of each channel, the sum of squares, the
# counts of |x|, and those of the tokens' largest.
_JOIN = (
    _OFFSETS
    + """
    const int* from = part_0;
    {choices}
    int* row = out + size_t(blockIdx.y) * (3 * CHANNELS + 1 + 2 * BINS);
    __shared__ int counts[BINS];
    const int thread = threadIdx.x;
    if (blockIdx.x == 0) {{
        for (int bin = thread; bin < BINS; bin += THREADS) counts[bin] = 0;
        __syncthreads();
        for (int token = thread; token < ROWS; token += THREADS) {{
            int largest = 0;
            #pragma unroll 8
            for (int chunk = 0; chunk < CHUNKS; chunk++)
                largest = max(largest, from[TOKENS + size_t(chunk) * ROWS + token]);
            atomicAdd(&counts[bin_number(__int_as_float(largest))], 1);
        }}
        __syncthreads();
        for (int bin = thread; bin < BINS; bin += THREADS)
            row[3 * CHANNELS + 1 + BINS + bin] = counts[bin];
        if (thread < 32) {{
            float total = 0.0f;
            for (int part = thread; part < PARTS; part += 32)
                total += __int_as_float(from[SQUARES + part]);
            for (int distance = 16; distance > 0; distance /= 2)
                total += __shfl_xor_sync(0xffffffffu, total, distance);
            if (thread == 0) row[3 * CHANNELS] = __float_as_int(total);
        }}
    }} else if (blockIdx.x <= BIN_BLOCKS) {{
        const int here = thread % BINS_OF_BLOCK;
        const int bin = (blockIdx.x - 1) * BINS_OF_BLOCK + here;
        if (thread < BINS_OF_BLOCK) counts[here] = 0;
        __syncthreads();
        int total = 0;
        if (bin < BINS) {{
            #pragma unroll 8
            for (int part = thread / BINS_OF_BLOCK; part < PARTS; part += THREADS / BINS_OF_BLOCK)
                total += from[COUNTS + size_t(part) * BINS + bin];
        }}
        atomicAdd(&counts[here], total);
        __syncthreads();
        if (thread < BINS_OF_BLOCK && bin < BINS) row[3 * CHANNELS + 1 + bin] = counts[here];
    }} else {{
        const int channel = (blockIdx.x - 1 - BIN_BLOCKS) * THREADS + thread;
        if (channel >= CHANNELS) return;
        float lowest = INFINITE, highest = -INFINITE, total = 0.0f;
        for (int slab = 0; slab < SLABS; slab++) {{
            const int* column = from + size_t(slab) * 3 * CHANNELS + channel;
            lowest = fminf(lowest, __int_as_float(column[0]));
            highest = fmaxf(highest, __int_as_float(column[CHANNELS]));
            total += __int_as_float(column[2 * CHANNELS]);
        }}
        row[channel] = __float_as_int(lowest);
        row[CHANNELS + channel] = __float_as_int(highest);
        row[2 * CHANNELS + channel] = __float_as_int(total);
    }}
"""
)


def joining_source(arrays: int) -> str:
    """The source of the kernel that puts together what was found of so many arrays."""
    choices = "\n    ".join(
        f"if (blockIdx.y == {array}) from = part_{array};" for array in range(1, arrays)
    )
    return _JOIN.format(choices=choices)
