// Minimal fake NCCL for emulated devices (`emulator/`): ranks are threads, memory is host memory, sums are right and in f32.
// A call waits on the host until every rank is there, where the real one waits on the device.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, FLOAT32 = 7, SUM = 0, RANKS = 16 };
typedef struct { char bytes[128]; } Id;
// An exchange of all ranks: each provides a buffer, the last to arrive adds them up, and each receives the sum.
typedef struct Group {
  long id; int ranks, here, failed; long meeting; size_t count;
  const float *from[RANKS]; float *to[RANKS]; struct Group *next;
} Group;
typedef struct { Group *group; int rank; } Comm;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Group *groups;
static int fails(const char *what) { const char *e = getenv("STUB_NCCL_FAIL"); return e && !strcmp(e, what); }

static int meet(Comm *comm, const float *from, float *to, size_t count) {
  Group *g = comm->group;
  long meeting = g->meeting;
  if (g->here && count != g->count) g->failed = 1;
  g->count = count; g->from[comm->rank] = from; g->to[comm->rank] = to;
  if (++g->here == g->ranks) {
    float *sum = calloc(count ? count : 1, sizeof *sum);
    for (int r = 0; r < g->ranks; r++) for (size_t i = 0; i < count; i++) sum[i] += g->from[r][i];
    for (int r = 0; r < g->ranks; r++) if (count) memcpy(g->to[r], sum, count * sizeof *sum);
    free(sum);
    g->here = 0; g->meeting++;
    pthread_cond_broadcast(&changed);
  } else {
    while (g->meeting == meeting) pthread_cond_wait(&changed, &lock);
  }
  return g->failed ? INVALID_ARGUMENT : SUCCESS;
}

int ncclGetUniqueId(Id *id) {
  static long n = 0;
  memset(id, 0, sizeof *id);
  *(long *)id->bytes = __sync_add_and_fetch(&n, 1);
  return SUCCESS;
}

int ncclCommInitRank(Comm **comm, int ranks, Id id, int rank) {
  if (fails("start")) return SYSTEM_ERROR;
  if (ranks > RANKS) return INVALID_ARGUMENT;
  pthread_mutex_lock(&lock);
  Group *g = groups;
  while (g && g->id != *(long *)id.bytes) g = g->next;
  if (!g) {
    g = calloc(1, sizeof *g);
    g->id = *(long *)id.bytes; g->ranks = ranks; g->next = groups; groups = g;
  }
  *comm = malloc(sizeof **comm);
  **comm = (Comm){g, rank};
  int result = meet(*comm, NULL, NULL, 0);
  pthread_mutex_unlock(&lock);
  return result;
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, Comm *comm, void *stream) {
  if (fails("sum") || type != FLOAT32 || op != SUM) return INVALID_ARGUMENT;
  pthread_mutex_lock(&lock);
  int result = meet(comm, from, to, count);
  pthread_mutex_unlock(&lock);
  if (getenv("STUB_VERBOSE")) fprintf(stderr, "[stub] all_reduce of %zu on rank %d: %d\n", count, comm->rank, result);
  return result;
}
