/* The part of CANN's runtime that must be quick or must exist before Python answers: memory, devices, handles, and the
 * objects (tensors, scalars, lists) that operator calls take. Signatures: acl/acl_rt.h and acl/acl_base.h of the wheel. */
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OUT_OF_MEMORY 207001 /* ACL_ERROR_RT_MEMORY_ALLOCATION */

static int device;
static size_t used, capacity;
static int poison = -1;
char hostnpu_message[8192]; /* what aclGetRecentErrMsg answers; written by Python */

long hostnpu_nothing(void) { return 0; } /* answers every operator in null mode */
int hostnpu_copy(void *d, size_t m, const void *s, size_t n, int kind, void *stream) { memmove(d, s, n); return 0; }
const char *aclGetRecentErrMsg(void) { return hostnpu_message; }

/* The value of a variable; none if it is empty. Python has checked them (settings.py). */
static const char *setting(const char *name) { const char *s = getenv(name); return s && *s ? s : NULL; }

/* Memory: the host's, counted, optionally filled with NaN so that nobody relies on zeros. */
static size_t total(void) {
    const char *gib = setting("HOSTNPU_MEMORY_GIB");
    if (!capacity) capacity = (size_t)(gib ? atoi(gib) : 64) << 30;
    return capacity;
}
static int allocate(void **p, size_t n) {
    if (used + n > total()) return OUT_OF_MEMORY;
    if (posix_memalign(p, 512, n ? n : 512)) return OUT_OF_MEMORY;
    if (poison < 0) { const char *s = setting("HOSTNPU_POISON"); poison = s && atoi(s); }
    if (poison) memset(*p, 0xFF, n);
    used += malloc_usable_size(*p);
    return 0;
}
int aclrtMalloc(void **p, size_t n, int policy) { return allocate(p, n); }
int aclrtMallocAlign32(void **p, size_t n, int policy) { return allocate(p, n); }
int aclrtFree(void *p) { used -= malloc_usable_size(p); free(p); return 0; }
int aclrtGetMemInfo(int kind, size_t *available, size_t *all) { *all = total(); *available = *all - used; return 0; }
int aclrtMallocHost(void **p, size_t n) { return posix_memalign(p, 512, n ? n : 512); }
int aclrtMallocHostWithCfg(void **p, size_t n, void *config) { return aclrtMallocHost(p, n); }
int aclrtFreeHost(void *p) { free(p); return 0; }
int aclrtMemcpy(void *d, size_t m, const void *s, size_t n, int kind) { memmove(d, s, n); return 0; }
int aclrtMemset(void *d, size_t m, int v, size_t n) { memset(d, v, n); return 0; }

/* Devices. */
int aclrtGetDeviceCount(uint32_t *n) { const char *s = setting("HOSTNPU_DEVICES"); *n = s ? atoi(s) : 1; return 0; }
int aclrtGetDevice(int *d) { *d = device; return 0; }
int aclrtSetDevice(int d) { device = d; return 0; }
const char *aclrtGetSocName(void) { const char *s = getenv("HOSTNPU_SOC"); return s ? s : "Ascend910B3"; }
int aclrtGetCurrentContext(void **c) { static int context; *c = &context; return 0; }
int aclrtDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return 0; }
int aclGetDeviceCapability(uint32_t d, int which, int64_t *value) { *value = 24; return 0; }
size_t aclGetCompileoptSize(int option) { return 32; }
int aclGetCompileopt(int option, char *value, size_t n) {
    strncpy(value, option == 0 ? "must_keep_origin_dtype" : option == 10 ? "disable" : "1", n);
    return 0;
}
int aclsysGetVersionStr(const char *package, char *version) { strcpy(version, "9.1.0"); return 0; }
int aclsysGetCANNVersion(int package, char *version) { strcpy(version, "9.1.0"); return 0; }

/* Streams and events are handles; what they order is Python's business (streams.py). */
typedef struct { int64_t id, flag; } Handle;
static int64_t last_handle;
static int handle(void **p, int64_t flag) {
    Handle *h = malloc(sizeof(Handle));
    h->id = ++last_handle; h->flag = flag; *p = h;
    return 0;
}
int aclrtCreateStream(void **p) { return handle(p, 0); }
int aclrtCreateStreamWithConfig(void **p, uint32_t priority, uint32_t flag) { return handle(p, 0); }
int aclrtCreateEvent(void **p) { return handle(p, 0); }
int aclrtCreateEventWithFlag(void **p, uint32_t flag) { return handle(p, flag); }
int aclrtCreateEventExWithFlag(void **p, uint32_t flag) { return handle(p, flag); }
int aclrtStreamGetId(void *s, int32_t *id) { *id = s ? (int32_t)((Handle *)s)->id : 0; return 0; }
int aclrtEventElapsedTime(float *ms, void *a, void *b) { *ms = 0; return 0; }

/* Of HCCL only what its watchdog thread asks all the time; the rest is collectives.py. */
int HcclGetCommAsyncError(void *comm, int *error) { *error = 0; return 0; }

/* The older way to call operators, by type: it has no stand-ins, and must not seem to succeed. */
static int refuse(const char *type) {
    snprintf(hostnpu_message, sizeof hostnpu_message, "%s: the host NPU answers aclnn operators only, not aclop", type);
    return 161001;
}
int aclopCompileAndExecute(const char *type) { return refuse(type); }
int aclopCompileAndExecuteV2(const char *type) { return refuse(type); }

/* Objects. One layout for all kinds, read by abi.py: six words, then `count` values (twice for a tensor). */
typedef struct { int64_t kind, dtype, count, offset, format; void *data; int64_t values[]; } Object;
enum { TENSOR = 1, SCALAR, INTS, BOOLS, FLOATS, TENSORS, SCALARS };
static Object *object(int64_t kind, int64_t dtype, int64_t count, int64_t words) {
    Object *o = calloc(1, sizeof(Object) + 8 * (words ? words : 1));
    o->kind = kind; o->dtype = dtype; o->count = count;
    return o;
}
void *aclCreateTensor(const int64_t *sizes, uint64_t n, int dtype, const int64_t *strides, int64_t offset, int format,
                      const int64_t *storage, uint64_t m, void *data) {
    Object *o = object(TENSOR, dtype, n, 2 * n);
    o->offset = offset; o->format = format; o->data = data;
    memcpy(o->values, sizes, 8 * n); memcpy(o->values + n, strides, 8 * n);
    return o;
}
void *aclCreateScalar(void *value, int dtype) {
    static const char bytes[] = {[0] = 4, [1] = 2, [2] = 1, [3] = 4, [4] = 1, [6] = 2, [7] = 2, [8] = 4, [9] = 8,
                                 [10] = 8, [11] = 8, [12] = 1, [16] = 8, [17] = 16, [27] = 2};
    Object *o = object(SCALAR, dtype, 1, 2);
    memcpy(o->values, value, dtype < (int)sizeof(bytes) ? bytes[dtype] : 8);
    return o;
}
void *aclCreateIntArray(const int64_t *v, uint64_t n) { Object *o = object(INTS, 9, n, n); memcpy(o->values, v, 8 * n); return o; }
void *aclCreateFloatArray(const float *v, uint64_t n) { Object *o = object(FLOATS, 0, n, n); memcpy(o->values, v, 4 * n); return o; }
void *aclCreateBoolArray(const char *v, uint64_t n) { Object *o = object(BOOLS, 12, n, n); memcpy(o->values, v, n); return o; }
static void *list(int64_t kind, void *const *v, uint64_t n) { Object *o = object(kind, 0, n, n); memcpy(o->values, v, 8 * n); return o; }
void *aclCreateTensorList(void *const *v, uint64_t n) { return list(TENSORS, v, n); }
void *aclCreateScalarList(void *const *v, uint64_t n) { return list(SCALARS, v, n); }
/* What an output's shape became; the caller frees the array with delete[], which is free here. */
int aclGetViewShape(const void *p, int64_t **sizes, uint64_t *n) {
    const Object *o = p;
    *n = o->count; *sizes = malloc(8 * (o->count ? o->count : 1));
    memcpy(*sizes, o->values, 8 * o->count);
    return 0;
}
static int drop(void *p) {
    Object *o = p;
    if (!o) return 0;
    if (o->kind >= TENSORS) for (int64_t i = 0; i < o->count; i++) free((void *)o->values[i]);
    free(o);
    return 0;
}
int aclDestroyTensor(void *p) { return drop(p); }
int aclDestroyScalar(void *p) { return drop(p); }
int aclDestroyIntArray(void *p) { return drop(p); }
int aclDestroyBoolArray(void *p) { return drop(p); }
int aclDestroyFloatArray(void *p) { return drop(p); }
int aclDestroyTensorList(void *p) { return drop(p); }
int aclDestroyScalarList(void *p) { return drop(p); }
