/* A fake of the driver's library libnvidia-ml.so.1, for machines without a GPU: two GPUs that do not exist.
 * Only what the hive asks is here (https://docs.nvidia.com/deploy/nvml-api/). The memory in use of GPU i is the i-th
 * number in the file that FAKE_GPU_USED names, so that a test can change it; so are its processes, a line "GPU PID
 * BYTES" each, in the file that FAKE_GPU_PROCESSES names, and a GPU that is lost, in that of FAKE_GPU_LOST. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, IS_LOST = 15, GPUS = 2 };

typedef struct {
    unsigned long long total, free, used;
} memory_info;

typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} process_info;

static int numbers[GPUS] = {0, 1};
static const unsigned long long totals[GPUS] = {8ull << 30, 16ull << 30};

static int copy(char *to, unsigned int room, const char *text)
{
    if (strlen(text) + 1 > room)
        return INVALID_ARGUMENT;
    strcpy(to, text);
    return SUCCESS;
}

static unsigned long long used_by(int gpu)
{
    unsigned long long used[GPUS] = {0};
    const char *path = getenv("FAKE_GPU_USED");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        if (fscanf(file, "%llu %llu", &used[0], &used[1]) != GPUS)
            used[gpu] = 0;
        fclose(file);
    }
    return used[gpu];
}

static int lost(int gpu)
{
    int which = -1;
    const char *path = getenv("FAKE_GPU_LOST");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        if (fscanf(file, "%d", &which) != 1)
            which = -1;
        fclose(file);
    }
    return which == gpu;
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake GPU"; }
int nvmlSystemGetDriverVersion(char *to, unsigned int room) { return copy(to, room, "0.0-fake"); }

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    *count = GPUS;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device)
{
    if (index >= GPUS)
        return INVALID_ARGUMENT;
    *device = &numbers[index];
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_info *memory)
{
    int gpu = *(int *)device;
    if (lost(gpu))
        return IS_LOST;
    memory->total = totals[gpu];
    memory->used = used_by(gpu);
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_info *processes)
{
    const char *path = getenv("FAKE_GPU_PROCESSES");
    FILE *file = path ? fopen(path, "r") : NULL;
    unsigned int room = *count, found = 0;
    process_info one = {0};
    int gpu;
    while (file && fscanf(file, "%d %u %llu", &gpu, &one.pid, &one.used) == 3)
        if (gpu == *(int *)device) {
            if (found < room)
                processes[found] = one;
            found++;
        }
    if (file)
        fclose(file);
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor)
{
    (void)device;
    *major = 9;
    *minor = 0;
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *to, unsigned int room)
{
    (void)device;
    return copy(to, room, "Fake GPU");
}

int nvmlDeviceGetUUID(void *device, char *to, unsigned int room)
{
    return copy(to, room, *(int *)device ? "GPU-fake-1" : "GPU-fake-0");
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius)
{
    (void)device;
    (void)sensor;
    *celsius = 40;
    return SUCCESS;
}
