/* The sizes of an engine, known before it exists. */
#ifndef KVQ_ENGINE_LAYOUT_H
#define KVQ_ENGINE_LAYOUT_H

#include "engine/engine.h"

/* params may be NULL for the defaults. On success out->spec must be freed. */
pykvq_status kvq_layout_compute(const pykvq_model *model, const pykvq_engine_params *params, kvq_layout *out);
void kvq_layout_plan(const pykvq_model *model, const kvq_layout *layout, pykvq_plan *out);

#endif
