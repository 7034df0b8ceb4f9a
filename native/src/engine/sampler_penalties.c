/* What the tokens before do to the logits: repetition, frequency and presence penalties, and DRY (Don't Repeat Yourself).
 */
#include <math.h>

#include "engine/sampler.h"

/* The last of the history that a look-back of last_n tokens (-1: all) sees. */
static const int32_t *look_back(const int32_t *history, uint32_t *n_history, int32_t last_n) {
    uint32_t n = last_n < 0 || (uint32_t)last_n > *n_history ? *n_history : (uint32_t)last_n;
    const int32_t *seen = history + (*n_history - n);
    *n_history = n;
    return seen;
}

void kvq_apply_penalties(const pykvq_sampler_params *p, float *logits, uint32_t n_vocab, const int32_t *history,
                         uint32_t n_history, uint32_t *tally) {
    if (p->repeat_penalty == 1.0f && p->frequency_penalty == 0.0f && p->presence_penalty == 0.0f)
        return;
    const int32_t *seen = look_back(history, &n_history, p->penalty_last_n);
    for (uint32_t i = 0; i < n_history; i++)
        if ((uint32_t)seen[i] < n_vocab)
            tally[seen[i]]++;
    for (uint32_t i = 0; i < n_history; i++) {
        uint32_t t = (uint32_t)seen[i];
        if (t >= n_vocab || tally[t] == 0)
            continue;
        logits[t] = logits[t] > 0 ? logits[t] / p->repeat_penalty : logits[t] * p->repeat_penalty;
        logits[t] -= (float)tally[t] * p->frequency_penalty + p->presence_penalty;
        tally[t] = 0;
    }
}

static bool is_breaker(const pykvq_sampler_params *p, int32_t token) { /* they are sorted */
    uint32_t low = 0, high = p->n_dry_breakers;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (p->dry_breakers[middle] < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low < p->n_dry_breakers && p->dry_breakers[low] == token;
}

/* matches[d], d > 0: how many of the newest tokens are the same as those that end d tokens earlier. This is the Z function
 * of the reversed history: linear, since what lies inside the match that reaches furthest is known from its beginning. */
static void count_matches(const int32_t *newest, uint32_t n, uint32_t *matches) {
    uint32_t left = 0, right = 0; /* the match that reaches furthest back: [left, right) */
    for (uint32_t d = 1; d < n; d++) {
        uint32_t length = 0;
        if (d < right)
            length = matches[d - left] < right - d ? matches[d - left] : right - d;
        while (d + length < n && newest[-(int64_t)length] == newest[-(int64_t)(d + length)])
            length++;
        matches[d] = length;
        if (d + length > right) {
            left = d;
            right = d + length;
        }
    }
}

void kvq_apply_dry(const pykvq_sampler_params *p, float *logits, uint32_t n_vocab, const int32_t *history,
                   uint32_t n_history, uint32_t *tally, uint32_t *matches) {
    if (p->dry_multiplier == 0.0f)
        return;
    const int32_t *seen = look_back(history, &n_history, p->dry_last_n);
    const int32_t *newest = seen + n_history - 1;
    uint32_t longest = 0; /* a repetition does not go across a breaker */
    while (longest < n_history && !is_breaker(p, newest[-(int64_t)longest]))
        longest++;
    uint32_t allowed = (uint32_t)p->dry_allowed_length;
    if (longest < allowed || n_history <= allowed)
        return;
    count_matches(newest, n_history, matches);
    for (uint32_t d = 1; d < n_history; d++) { /* the token behind a match would continue the repetition */
        uint32_t t = (uint32_t)newest[-(int64_t)d + 1], length = matches[d] < longest ? matches[d] : longest;
        if (t < n_vocab && length >= allowed && length > tally[t])
            tally[t] = length;
    }
    for (uint32_t d = 1; d < n_history; d++) {
        uint32_t t = (uint32_t)newest[-(int64_t)d + 1];
        if (t >= n_vocab || tally[t] == 0)
            continue;
        float penalty = p->dry_multiplier * powf(p->dry_base, (float)(tally[t] - allowed));
        if (!is_breaker(p, (int32_t)t))
            logits[t] -= fminf(penalty, 1e30f); /* finite: a token that repeats for very long stays possible */
        tally[t] = 0;
    }
}
