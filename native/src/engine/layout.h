/* The sizes of an engine, known before it exists. */
#ifndef KVQ_ENGINE_LAYOUT_H
#define KVQ_ENGINE_LAYOUT_H

#include "engine/engine.h"

/* params may be NULL for the defaults. On success out->spec must be freed. */
pykvq_status kvq_layout_compute(const pykvq_model *model, const pykvq_engine_params *params, kvq_layout *out);
void kvq_layout_plan(const pykvq_model *model, const kvq_layout *layout, pykvq_plan *out);

/* fit.c: PYKVQ_OK if the engine of this layout, which params lead to, fits what its GPU has free, or is for the CPU. */
pykvq_status kvq_fit_check(const pykvq_model *model, const pykvq_engine_params *params, const kvq_layout *layout);

/* Bytes from one tile of a codec to the next: whole cache lines; 0 if it cannot take the head. */
size_t kvq_tile_stride(const kvq_codec *codec, uint32_t head_dim);

#endif
