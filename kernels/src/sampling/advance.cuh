// The end of a decode step, for argmax.cu and sample.cu: the chosen token is stored where the next step and the
// host read it, and the row advances by one token.
#pragma once
#include "../cuda/device.cuh"
#include "../cuda/page.cuh"

// What `history` holds instead of a token; `TokenError` on the host has the same numbers.
constexpr int32_t NOT_FINITE = -1;  // a logit is NaN or +inf
constexpr int32_t ALL_MASKED = -2;  // every logit is -inf
constexpr int32_t LIST_FULL = -3;   // sample.cu: no room in the row's list of penalised tokens

struct Advance {
    int32_t* next_ids;      // [m], the input of the next step
    int32_t* history;       // [n_steps][m], what the host reads: row `*step` is written
    const int32_t* step;    // device counter of the burst, or null for row 0
    int32_t m;
    // State of the rows, updated when `advance` is set.
    int32_t advance;
    int32_t* positions;     // [m]
    int32_t* context_len;   // [m], 0 for a padding row
    int32_t* slots;         // [m]
    const int32_t* page_table;  // [m][max_pages]
    int32_t max_pages;
    int32_t n_steps;        // rows of history; a step outside is not written
};

// Row of history that this step writes, or -1.
DEVICE int32_t history_row(const Advance& a) {
    const int32_t step = a.step == nullptr ? 0 : *a.step;
    return step >= 0 && step < a.n_steps ? step : -1;
}

// By one thread a row. `recorded` is what the host sees: the token, or a negative error.
DEVICE void advance_row(const Advance& a, int row, int32_t token, int32_t recorded) {
    a.next_ids[row] = token;
    const int32_t step = history_row(a);
    if (step >= 0) a.history[static_cast<int64_t>(step) * a.m + row] = recorded;
    if (!a.advance || a.context_len[row] <= 0) return;
    const int position = a.context_len[row], page = position / PAGE_TOKENS;  // of the token just chosen
    const int32_t* table = a.page_table + static_cast<int64_t>(row) * a.max_pages;
    a.positions[row] = position;
    a.context_len[row] = position + 1;
    a.slots[row] = page < a.max_pages ? table[page] * PAGE_TOKENS + position % PAGE_TOKENS : -1;
}
