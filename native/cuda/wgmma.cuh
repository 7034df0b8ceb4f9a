/*
 * What compute capability 9.0a has for prefill attention: products of a warp group with the B operand in shared memory,
 * copies in bulk, barriers that count bytes. A warp group (four warps) multiplies 64 rows, 16 of each warp, as A fragments
 * in registers.
 */
#ifndef KVQ_CUDA_WGMMA_CUH
#define KVQ_CUDA_WGMMA_CUH

#include "instructions.cuh"

/* ---- barriers ---- */

__device__ __forceinline__ void barrier_init(uint64_t *barrier, int n) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(shared_address(barrier)), "r"(n) : "memory");
}

__device__ __forceinline__ void barrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done,[%0],%1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* Bytes from global to shared memory; the barrier is passed when they are there. One thread. */
__device__ __forceinline__ void copy_bulk(void *shared, const void *global, uint32_t n_bytes, uint64_t *barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(shared_address(barrier)), "r"(n_bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(n_bytes), "r"(shared_address(barrier))
                 : "memory");
}

/* ---- products ---- */

/* B operand: matrices of 8 x 8 halves of 128 bytes each, without swizzling. Bytes from one to the next along the sum, and
 * along the columns. */
__device__ __forceinline__ uint64_t matrix_descriptor(const void *p, uint32_t along_sum, uint32_t along_cols) {
    return (shared_address(p) & 0x3ffff) >> 4 | (uint64_t)(along_sum >> 4) << 16 | (uint64_t)(along_cols >> 4) << 32;
}

__device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N committed groups are under way. */
template <int N> __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* The compiler does not know that products write later than where they are asked for. */
template <int N> __device__ __forceinline__ void keep_order(float (&x)[N][4]) {
#pragma unroll
    for (int i = 0; i < N * 4; i++)
        asm volatile("" : "+f"(x[i / 4][i % 4])::"memory");
}

template <int N> __device__ __forceinline__ void keep_order(uint4 (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(x[i].x), "+r"(x[i].y), "+r"(x[i].z), "+r"(x[i].w)::"memory");
}

/* Registers of each thread of a warp group that need few, and of one that gets theirs. */
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
}

__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
}

/* What threads of this warp group wrote to shared memory comes before its products that read it. */
__device__ __forceinline__ void share_with_products(int group) {
    order_copies();
    asm volatile("bar.sync %0,128;" ::"r"(group + 1) : "memory");
}

/* c (64, cols) = a (64, 16) . b (16, cols), or added to it. A fragments of a in registers, or a descriptor of it, like b's:
 * its rows are its columns there. */
#define FOUR(c, n)    "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define SIXTEEN(c, n) FOUR(c, n), FOUR(c, n + 1), FOUR(c, n + 2), FOUR(c, n + 3)
#define MULTIPLY(cols, c, a, b, add)                                                                                       \
    "{\n.reg .pred add;\nsetp.ne.b32 add," add ",0;\n"                                                                     \
    "wgmma.mma_async.sync.aligned.m64n" #cols "k16.f32.f16.f16 {" c "}," a "," b ",add,1,1,0"

#define C16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define C32 C16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define C40 C32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define C48 C40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define C56 C48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define C64 C56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define C128                                                                                                               \
    C64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,"    \
        "%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,"       \
        "%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#define A_REGISTERS "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w)

__device__ __forceinline__ void warpgroup_mma(float (&c)[8][4], uint64_t a, uint64_t b, bool add) {
    asm volatile(MULTIPLY(64, C32, "%32", "%33", "%34") ",0;\n}"
                 : SIXTEEN(c, 0), SIXTEEN(c, 4)
                 : "l"(a), "l"(b), "r"((int)add));
}

__device__ __forceinline__ void warpgroup_mma(float (&c)[8][4], uint4 a, uint64_t b, bool add) {
    asm volatile(MULTIPLY(64, C32, "{%32,%33,%34,%35}", "%36", "%37") ";\n}"
                 : SIXTEEN(c, 0), SIXTEEN(c, 4)
                 : A_REGISTERS, "l"(b), "r"((int)add));
}

__device__ __forceinline__ void warpgroup_mma(float (&c)[10][4], uint4 a, uint64_t b, bool add) {
    asm volatile(MULTIPLY(80, C40, "{%40,%41,%42,%43}", "%44", "%45") ";\n}"
                 : SIXTEEN(c, 0), SIXTEEN(c, 4), FOUR(c, 8), FOUR(c, 9)
                 : A_REGISTERS, "l"(b), "r"((int)add));
}

__device__ __forceinline__ void warpgroup_mma(float (&c)[12][4], uint4 a, uint64_t b, bool add) {
    asm volatile(MULTIPLY(96, C48, "{%48,%49,%50,%51}", "%52", "%53") ";\n}"
                 : SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8)
                 : A_REGISTERS, "l"(b), "r"((int)add));
}

__device__ __forceinline__ void warpgroup_mma(float (&c)[14][4], uint4 a, uint64_t b, bool add) {
    asm volatile(MULTIPLY(112, C56, "{%56,%57,%58,%59}", "%60", "%61") ";\n}"
                 : SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8), FOUR(c, 12), FOUR(c, 13)
                 : A_REGISTERS, "l"(b), "r"((int)add));
}

__device__ __forceinline__ void warpgroup_mma(float (&c)[16][4], uint4 a, uint64_t b, bool add) {
    asm volatile(MULTIPLY(128, C64, "{%64,%65,%66,%67}", "%68", "%69") ";\n}"
                 : SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8), SIXTEEN(c, 12)
                 : A_REGISTERS, "l"(b), "r"((int)add));
}

__device__ __forceinline__ void warpgroup_mma(float (&c)[32][4], uint4 a, uint64_t b, bool add) {
    asm volatile(MULTIPLY(256, C128, "{%128,%129,%130,%131}", "%132", "%133") ";\n}"
                 : SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8), SIXTEEN(c, 12), SIXTEEN(c, 16), SIXTEEN(c, 20),
                   SIXTEEN(c, 24), SIXTEEN(c, 28)
                 : A_REGISTERS, "l"(b), "r"((int)add));
}

#endif
