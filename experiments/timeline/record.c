/* Every kernel that a process runs, with its start and end on the card, kernels of graphs included.
 *
 *   CUDA_INJECTION64_PATH=libtimeline.so TIMELINE=out.csv engine bench …
 *
 * The driver loads this library into the process, which knows nothing of it. One line a kernel:
 * start_ns,end_ns,blocks,threads,registers,shared_bytes,name. Times come from CUPTI, which slows
 * launches down a little but not the kernels; overlaps of kernels that start early are kept.
 */
#include <cupti.h>
#include <stdio.h>
#include <stdlib.h>

enum { BUFFER_BYTES = 8 << 20 };
static FILE *out;

static void check(CUptiResult result, const char *call) {
    const char *text = "?";
    if (result == CUPTI_SUCCESS) return;
    cuptiGetResultString(result, &text);
    fprintf(stderr, "timeline: %s: %s\n", call, text);
}

static void CUPTIAPI requested(uint8_t **buffer, size_t *size, size_t *max_records) {
    *buffer = aligned_alloc(8, BUFFER_BYTES);
    *size = *buffer == NULL ? 0 : BUFFER_BYTES;
    *max_records = 0;
}

static void CUPTIAPI completed(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    CUpti_Activity *record = NULL;
    (void)context, (void)stream, (void)size;
    while (out != NULL && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
        const CUpti_ActivityKernel10 *k = (const CUpti_ActivityKernel10 *)record;
        fprintf(out, "%llu,%llu,%d,%d,%u,%d,%s\n", (unsigned long long)k->start, (unsigned long long)k->end,
                k->gridX * k->gridY * k->gridZ, k->blockX * k->blockY * k->blockZ, k->registersPerThread,
                k->dynamicSharedMemory + k->staticSharedMemory, k->name);
    }
    free(buffer);
}

static void finish(void) {
    check(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "flush");
    if (out != NULL) fclose(out);
    out = NULL;
}

/* The driver calls this once, before the process's first CUDA call returns. */
int InitializeInjection(void) {
    const char *path = getenv("TIMELINE");
    out = path == NULL ? NULL : fopen(path, "w");
    if (out == NULL) {
        fprintf(stderr, "timeline: TIMELINE names no file that can be written\n");
        return 1;
    }
    fprintf(out, "start_ns,end_ns,blocks,threads,registers,shared_bytes,name\n");
    check(cuptiActivityRegisterCallbacks(requested, completed), "register");
    check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL), "enable");
    atexit(finish);
    return 1;
}
