// A libcuda.so.1 without a GPU: it holds PTX for modules and hands each launch to a callback, with the raw parameters.
// A module belongs to the device that was current when it was loaded, and is launched on that device alone.
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

typedef void (*launch_callback)(const char *ptx, const char *name, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                unsigned shared, unsigned long long stream, int device, void **params);
static launch_callback callback = 0;
static int capability = 90, device = 0;
typedef struct { char *ptx; char name[256]; int shared_limit, device; } Module;

void stand_in_set(launch_callback f, int arch) { callback = f; capability = arch; }
void stand_in_use(int d) { device = d; }

// What a tensor map holds here: the arguments themselves.
typedef struct {
  unsigned long long magic, unused, base, strides[4];  // Triton clears a bit of the second word for old drivers
  unsigned dims[5], box[5];
  int rank, type, swizzle, fill;
} Map;

#define OK return CUDA_SUCCESS
CUresult cuInit(unsigned f) { OK; }
CUresult cuDriverGetVersion(int *v) { *v = 13000; OK; }
CUresult cuGetErrorString(CUresult e, const char **s) { *s = "an error of the stand-in driver"; OK; }
CUresult cuDeviceGet(CUdevice *d, int i) { *d = i; OK; }
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
  switch (a) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *v = capability >= 90 ? 232448 : 166912; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *v = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *v = 32; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *v = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *v = 233472; break;
  default: *v = 1024;
  }
  OK;
}
static int context;
CUresult cuCtxGetCurrent(CUcontext *c) { *c = (CUcontext)&context; OK; }
CUresult cuCtxSetCurrent(CUcontext c) { OK; }
CUresult cuCtxGetLimit(size_t *v, CUlimit l) { *v = 0; OK; }
CUresult cuCtxSetLimit(CUlimit l, size_t v) { OK; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { *c = (CUcontext)&context; OK; }
CUresult cuModuleLoadData(CUmodule *m, const void *image) {
  Module *module = calloc(1, sizeof *module);
  module->ptx = strdup(image);
  module->device = device;
  *m = (CUmodule)module;
  OK;
}
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
  strncpy(((Module *)m)->name, name, 255);
  *f = (CUfunction)m;
  OK;
}
CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  OK;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
  if (a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) ((Module *)f)->shared_limit = v;
  OK;
}
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) { OK; }
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) { *n = 1; OK; }
CUresult cuPointerGetAttribute(void *data, CUpointer_attribute a, CUdeviceptr p) { *(CUdeviceptr *)data = p; OK; }
CUresult cuTensorMapEncodeTiled(CUtensorMap *out, CUtensorMapDataType type, cuuint32_t rank, void *base,
                                const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *element, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
  Map *m = (Map *)out;
  memset(m, 0, sizeof *m);
  m->magic = 0x70615478; m->base = (unsigned long long)base; m->rank = rank; m->type = type;
  m->swizzle = swizzle; m->fill = fill;
  for (unsigned i = 0; i < rank; i++) m->dims[i] = dims[i], m->box[i] = box[i];
  for (unsigned i = 0; i + 1 < rank; i++) m->strides[i] = strides[i];
  OK;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra) {
  Module *m = (Module *)f;
  if (m->device != device) return CUDA_ERROR_INVALID_HANDLE;
  if (c->sharedMemBytes > 49152 && (int)c->sharedMemBytes > m->shared_limit) return CUDA_ERROR_INVALID_VALUE;
  if (callback)
    callback(m->ptx, m->name, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->sharedMemBytes,
             (unsigned long long)c->hStream, device, params);
  OK;
}
