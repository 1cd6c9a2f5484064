/* A pool of threads that serves one loop at a time. Whoever finds it in use, or is in it, works alone, so nothing waits
 * for the pool and nothing can deadlock in it. Workers are started when work first needs them; where one cannot be had,
 * there is one fewer.
 *
 * A loop's items are divided into a share for each thread. A thread begins with its own (on the next call its part of
 * the weights is still in its cache) and then helps with the others': who comes late, or not at all, delays nobody. */
#include "runtime/platform.h"

#include "runtime/parallel.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/fpmode.h"
#include "runtime/sizes.h"

static const double MIN_WORK_PER_THREAD = 20e3; /* ns: several times what it costs to start */
static const double LONG_WORK = 2e6;            /* ns of a share, as estimated, from which on it is cut into pieces */
static const double FIRST_PIECE = 250e3; /* ns as estimated: 100 times too little without vectors, or on new pages */
static const int64_t PIECE = 10000000;   /* ns as measured */
static const int64_t LOOK = 40000000;    /* between two looks for signals: each may wait 5 ms for Python's lock */
static const int64_t SPIN = 100000;      /* what a thread waits awake: the gap between two layers of a model */
static const int64_t RETRY = 1000000000; /* after a thread could not be had */
static const int64_t FIRST_RETREAT = 5000000, LAST_RETREAT = 100000000;
static const int64_t SOON = 20000000; /* after a retreat: some of the slices in which systems share out CPUs */
static const double CLOCKED = 200e3;  /* ns of a loop, as estimated, from which on its workers' CPU time is asked for */
enum { LATE = 5 };                    /* loops in a row that a worker does not come to: some are too short to wake it */
enum { FEWEST_MOST = 8 };             /* threads that may be asked for on any machine */
enum { STACK_BYTES = 1 << 20 };       /* kernels use up to 170 KB of it, sanitizers more */

/* Items that nobody has taken. Each in its own cache line. */
typedef struct {
    _Alignas(64) size_t next;
    size_t end;
} share;

/* What a caller of the library waits for: all loops of one thread that are not within a body's. */
typedef struct {
    qk_thread_id caller;
    int64_t looked;
    int stopped;
} call;

typedef struct {
    void (*body)(void *, size_t, size_t);
    void *context;
    call *call;
    share *shares;
    double work;
    size_t threads, step; /* step: items that are taken at first */
    int timed;            /* whether a share is cut into pieces, and signals are looked for */
} loop;

typedef struct {
    _Alignas(64) loop *job; /* posted by the caller, who may take it back until it is `busy`; then NULL again */
    int asleep;
    int64_t lost; /* ns of its last loop in which it had no CPU; of a short one all */
    size_t index;
    qk_thread thread;
    qk_lock lock;
    qk_bell bell;
} worker;

static struct {
    int busy;       /* whether a thread has the pool */
    int generation; /* of the process, counted in forks since the pool's first */
    size_t started;
    worker *workers; /* room for the most there can be */
    share *shares;
    int64_t refused, spin, gap, ended; /* ended: the last loop; gap: between the last two */
    int late;                          /* loops in a row that the first worker did not come to */
    int full;                          /* whether its threads and another caller are more than the CPUs */
    int caller_asleep;
    qk_lock lock; /* of the caller's bell */
    qk_bell bell;
} pool = {.lock = QK_LOCK, .bell = QK_BELL};

/* How many threads may work together until some time, on loops of less than some work (ns); how long that lasts. */
static struct {
    int threads;
    int64_t until, lasts, work;
} retreat;

static loop busy, quit; /* jobs that are none */
static qk_slot here;    /* the call that a thread works for */
static int num_threads; /* 0: not yet read from the environment */
static int (*interrupted)(void), (*works_alone)(void);
int qk_long_loops;

static inline void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- how many ---- */

int qk_most_threads(void)
{
    const long machine = qk_machine_cpus();
    return machine > FEWEST_MOST ? (int)machine : FEWEST_MOST;
}

static int default_num_threads(void)
{
    const char *names[] = {"QKERNELS_NUM_THREADS", "OMP_NUM_THREADS"};
    for (int i = 0; i < 2; i++) {
        const char *text = getenv(names[i]);
        const long n = text ? strtol(text, NULL, 10) : 0;
        if (n > 0) return n < qk_most_threads() ? (int)n : qk_most_threads();
    }
    const int n = qk_usable_cpus();
    return n < qk_most_threads() ? n : qk_most_threads();
}

void qk_set_num_threads(int n)
{
    __atomic_store_n(&num_threads, n < qk_most_threads() ? n : qk_most_threads(), __ATOMIC_RELAXED);
}

int qk_get_num_threads(void)
{
    int n = __atomic_load_n(&num_threads, __ATOMIC_RELAXED);
    if (n == 0) __atomic_store_n(&num_threads, n = default_num_threads(), __ATOMIC_RELAXED);
    return n;
}

void qk_set_alone(int (*alone)(void)) { __atomic_store_n(&works_alone, alone, __ATOMIC_RELAXED); }

/* ---- where others want the CPUs ----
 *
 * Two workers of a framework, each with threads of ours, lose time: who waits awake keeps another from working, and who
 * is woken takes a CPU from one that works. It shows in three ways: a caller finds the pool at another's work, workers
 * do not wake up, or one of them takes far too long. Then loops like that one have fewer threads for a while, which
 * doubles as long as each new attempt shows the same. */

static int64_t seen(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static void keep(int64_t *p, int64_t value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }

static void fall_back(int threads, double work)
{
    const int64_t now = qk_now(), past = now - seen(&retreat.until), last = seen(&retreat.lasts);
    if (past < 0) return;
    const int64_t lasts = past > SOON ? FIRST_RETREAT : 2 * last < LAST_RETREAT ? 2 * last : LAST_RETREAT;
    __atomic_store_n(&retreat.threads, threads, __ATOMIC_RELAXED);
    keep(&retreat.work, work < 0x1p60 ? (int64_t)(4 * work) : INT64_MAX);
    keep(&retreat.lasts, lasts), keep(&retreat.until, now + lasts);
}

static int allowed_for(double work)
{
    const int threads = qk_get_num_threads(), fewer = __atomic_load_n(&retreat.threads, __ATOMIC_RELAXED);
    if (fewer >= threads || work >= (double)seen(&retreat.work) || qk_now() >= seen(&retreat.until)) return threads;
    return fewer;
}

/* After a loop that had all threads: one of few items tells nothing of them. Workers stay awake where the next one is
 * near: one that is absent again and again does not get a CPU when it is woken. Each attempt is told by as many loops:
 * the first after a retreat finds workers asleep, and may be over before they wake up. */
static void look_at_absent(const loop *l, int absent)
{
    pool.late = absent ? pool.late + (seen(&pool.gap) < SPIN) : 0;
    if (pool.late < LATE) return;
    fall_back((int)l->threads / 2, l->work);
    pool.late = 0;
}

/* After such a loop: whether one was waited for several times as long as the caller worked, since it had no CPU. */
static void look_at_laggards(const loop *l, int64_t own, int64_t waited, int64_t lost)
{
    if (!l->timed && waited > 2 * own + SPIN && lost > waited / 2) fall_back((int)l->threads / 2, l->work);
}

int qk_threads_for(size_t items, double work)
{
    if (work < 2 * MIN_WORK_PER_THREAD) return 1;
    if (__atomic_load_n(&pool.busy, __ATOMIC_RELAXED)) {
        if (__atomic_load_n(&pool.full, __ATOMIC_RELAXED) && !qk_held(here)) fall_back(qk_get_num_threads() - 1, work);
        return 1;
    }
    int (*alone)(void) = __atomic_load_n(&works_alone, __ATOMIC_RELAXED);
    if (alone && alone()) return 1;
    size_t threads = (size_t)allowed_for(work);
    if (threads > items) threads = items;
    if (work / MIN_WORK_PER_THREAD < (double)threads) threads = (size_t)(work / MIN_WORK_PER_THREAD);
    return threads > 1 ? (int)threads : 1;
}

/* ---- interrupts ---- */

void qk_set_interrupt(int (*poll)(void)) { __atomic_store_n(&interrupted, poll, __ATOMIC_RELAXED); }

/* Only the caller looks. A signal's handler may call the library: that is a call of its own. If it forks, the child has
 * lost the workers of this one, and cannot finish it. */
static int look(call *c)
{
    int (*poll)(void) = __atomic_load_n(&interrupted, __ATOMIC_RELAXED);
    if (__atomic_load_n(&c->stopped, __ATOMIC_RELAXED)) return 1;
    if (!poll || !qk_is_this_thread(c->caller)) return 0;
    const int64_t time = qk_now();
    if (time - c->looked < LOOK) return 0;
    c->looked = time;
    const int generation = pool.generation;
    qk_hold(here, NULL);
    if (poll() || pool.generation != generation) __atomic_store_n(&c->stopped, 1, __ATOMIC_RELAXED);
    qk_hold(here, c);
    return __atomic_load_n(&c->stopped, __ATOMIC_RELAXED);
}

int qk_call_is_stopped(void)
{
    call *c = qk_held(here);
    return c && look(c);
}

/* ---- a loop, as each of its threads runs it ---- */

/* Items for the next piece, when so many took so long. */
static size_t next_step(size_t step, int64_t took)
{
    const double ratio = (double)PIECE / (double)(took + 1), wanted = (double)step * (ratio < 8 ? ratio : 8);
    return wanted < 1 ? 1 : wanted < 0x1p62 ? (size_t)wanted : step;
}

static void work_on(const loop *l, size_t me)
{
    size_t step = l->step;
    for (size_t i = 0; i < l->threads; i++) {
        share *s = &l->shares[(me + i) % l->threads];
        while (!l->timed || !look(l->call)) {
            if (__atomic_load_n(&s->next, __ATOMIC_RELAXED) >= s->end) break;
            const size_t begin = __atomic_fetch_add(&s->next, step, __ATOMIC_RELAXED);
            if (begin >= s->end) break;
            const int64_t start = l->timed ? qk_now() : 0;
            l->body(l->context, begin, s->end - begin < step ? s->end : begin + step);
            if (l->timed) step = next_step(step, qk_now() - start);
        }
    }
}

/* ---- workers ---- */

static void ring(qk_lock *lock, qk_bell *bell)
{
    qk_take(lock);
    qk_ring(bell);
    qk_give(lock);
}

static int64_t spin(void) { return __atomic_load_n(&pool.spin, __ATOMIC_RELAXED); }

static loop *wait_for_job(worker *w)
{
    loop *job;
    for (const int64_t end = qk_now() + (seen(&pool.gap) < SPIN ? spin() : 0); qk_now() < end;)
        for (int i = 0; i < 16; i++, pause_briefly())
            if ((job = __atomic_load_n(&w->job, __ATOMIC_ACQUIRE))) return job;
    qk_take(&w->lock);
    __atomic_store_n(&w->asleep, 1, __ATOMIC_SEQ_CST);
    while (!(job = __atomic_load_n(&w->job, __ATOMIC_SEQ_CST))) qk_wait(&w->bell, &w->lock);
    __atomic_store_n(&w->asleep, 0, __ATOMIC_RELAXED);
    qk_give(&w->lock);
    return job;
}

/* Either this store or the worker's of `asleep` comes first, so that one of the two sees the other's. */
static void post(worker *w, loop *job)
{
    __atomic_store_n(&w->job, job, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&w->asleep, __ATOMIC_SEQ_CST)) ring(&w->lock, &w->bell);
}

static void serve(void *argument)
{
    worker *w = argument;
    qk_enter_mode();
    qk_set_up_worker();
    for (;;) {
        loop *job = wait_for_job(w);
        if (job == &quit) return;
        if (!__atomic_compare_exchange_n(&w->job, &job, &busy, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) continue;
        const int clocked = !job->timed && job->work >= CLOCKED;
        const int64_t start = qk_now(), used = clocked ? qk_cpu_time() : 0;
        if (qk_hold(here, job->call) || !job->timed) work_on(job, w->index);
        qk_hold(here, NULL);
        w->lost = qk_now() - start - (clocked ? qk_cpu_time() - used : 0);
        __atomic_store_n(&w->job, NULL, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&pool.caller_asleep, __ATOMIC_SEQ_CST)) ring(&pool.lock, &pool.bell);
    }
}

/* Memory for the most threads there can be, on the first call. */
static int have_room(void)
{
    if (pool.workers) return 1;
    const size_t most = (size_t)qk_most_threads();
    pool.workers = qk_obtain(qk_times(most, sizeof *pool.workers));
    pool.shares = qk_obtain(qk_times(most, sizeof *pool.shares));
    if (pool.workers && pool.shares) return 1;
    qk_release(pool.workers), qk_release(pool.shares);
    pool.workers = NULL, pool.shares = NULL;
    return 0;
}

/* Sees to `wanted` workers; returns how many of them there are. Where one is refused, none is asked for in the next
 * second. */
static size_t start_workers(size_t wanted)
{
    if (pool.started < wanted && (!pool.refused || qk_now() - pool.refused > RETRY)) {
        pool.refused = have_room() ? 0 : qk_now();
        while (pool.started < wanted && !pool.refused) {
            worker *w = &pool.workers[pool.started];
            *w = (worker){
                .index = pool.started + 1, .thread = {.serve = serve, .argument = w}, .lock = QK_LOCK, .bell = QK_BELL};
            if (qk_start_thread(&w->thread, STACK_BYTES))
                pool.started++;
            else
                pool.refused = qk_now();
        }
        /* Who waits awake for a CPU that others wait for as well keeps them from it. */
        const size_t cpus = (size_t)qk_usable_cpus();
        __atomic_store_n(&pool.spin, pool.started < cpus ? SPIN : 0, __ATOMIC_RELAXED);
        __atomic_store_n(&pool.full, pool.started + 2 > cpus, __ATOMIC_RELAXED);
    }
    return pool.started < wanted ? pool.started : wanted;
}

/* ---- the caller's side ---- */

/* Waits for a worker that is at its last piece. */
static void wait_for(worker *w, call *c)
{
    for (const int64_t end = qk_now() + spin(); qk_now() < end;)
        for (int i = 0; i < 16; i++, pause_briefly())
            if (__atomic_load_n(&w->job, __ATOMIC_ACQUIRE) != &busy) return;
    for (int late = 1; late; look(c)) {
        late = 0;
        qk_take(&pool.lock);
        __atomic_store_n(&pool.caller_asleep, 1, __ATOMIC_SEQ_CST);
        while (!late && __atomic_load_n(&w->job, __ATOMIC_SEQ_CST) == &busy)
            late = qk_wait_briefly(&pool.bell, &pool.lock, LOOK);
        __atomic_store_n(&pool.caller_asleep, 0, __ATOMIC_RELAXED);
        qk_give(&pool.lock);
    }
}

/* A worker that has not come to its job need not. Returns whether it has. */
static int finish(worker *w, loop *job)
{
    loop *posted = job;
    if (__atomic_compare_exchange_n(&w->job, &posted, NULL, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return 0;
    if (posted == &busy) wait_for(w, job->call);
    return 1;
}

static void run_alone(loop *l, size_t items)
{
    share all = {0, items};
    l->shares = &all, l->threads = 1;
    work_on(l, 0);
}

static void run_together(loop *l, size_t items, size_t threads)
{
    if (__atomic_exchange_n(&pool.busy, 1, __ATOMIC_ACQUIRE)) {
        run_alone(l, items);
        return;
    }
    const size_t workers = start_workers(threads - 1);
    if (!workers) {
        run_alone(l, items);
    } else {
        l->threads = workers + 1, l->shares = pool.shares;
        for (size_t i = 0; i <= workers; i++)
            pool.shares[i] = (share){items * i / l->threads, items * (i + 1) / l->threads};
        const int64_t start = qk_now();
        keep(&pool.gap, start - pool.ended);
        for (size_t i = 0; i < workers; i++) post(&pool.workers[i], l);
        work_on(l, 0);
        const int64_t own = qk_now();
        int64_t lost = 0;
        int absent = 0;
        for (size_t i = 0; i < workers; i++) {
            worker *w = &pool.workers[i];
            const int came = finish(w, l);
            if (came && w->lost > lost) lost = w->lost;
            if (i == 0) absent = !came;
        }
        pool.ended = qk_now();
        if (l->threads == (size_t)qk_get_num_threads()) {
            look_at_absent(l, absent);
            look_at_laggards(l, own - start, pool.ended - own, lost);
        }
    }
    __atomic_store_n(&pool.busy, 0, __ATOMIC_RELEASE);
}

int qk_parallel_for(size_t items, double work, void (*body)(void *, size_t, size_t), void *context)
{
    const size_t threads = (size_t)qk_threads_for(items, work);
    if (threads == 1 && work < LONG_WORK) {
        if (items) body(context, 0, items);
        return 0;
    }
    call *outer = qk_held(here), own = {.caller = qk_this_thread(), .looked = qk_now()};
    loop l = {.body = body, .context = context, .call = outer ? outer : &own, .work = work, .step = items};
    if (work >= LONG_WORK * (double)threads) {
        const double step = FIRST_PIECE / work * (double)items;
        l.timed = 1, l.step = step > 1 ? (size_t)step : 1;
    }
    qk_hold(here, l.call);
    __atomic_fetch_add(&qk_long_loops, 1, __ATOMIC_RELAXED);
    if (threads == 1)
        run_alone(&l, items);
    else
        run_together(&l, items, threads);
    __atomic_fetch_sub(&qk_long_loops, 1, __ATOMIC_RELAXED);
    qk_hold(here, outer);
    return __atomic_load_n(&l.call->stopped, __ATOMIC_RELAXED) ? QK_INTERRUPTED : 0;
}

/* ---- birth and end ---- */

/* A child has one thread, whatever the parent's others were at; the workers that it needs it starts itself. */
static void after_fork_in_child(void)
{
    for (size_t i = 0; i < pool.started; i++) pool.workers[i].job = NULL;
    pool.started = 0, pool.refused = 0, pool.caller_asleep = 0;
    pool.lock = (qk_lock)QK_LOCK, pool.bell = (qk_bell)QK_BELL;
    pool.busy = 0, pool.generation++;
    pool.late = 0, retreat.until = 0; /* others were the parent's threads */
}

__attribute__((constructor)) static void at_birth(void)
{
    qk_make_slot(&here);
    qk_after_fork_in_child(after_fork_in_child);
    qk_look_at_platform();
}

/* Of the process, or of this library in it. A thread that is still computing has the pool: it goes down with the
 * process. */
__attribute__((destructor)) static void at_end(void)
{
    if (__atomic_exchange_n(&pool.busy, 1, __ATOMIC_ACQUIRE) || (pool.started && !QK_CAN_JOIN_AT_END)) return;
    for (size_t i = 0; i < pool.started; i++) post(&pool.workers[i], &quit);
    for (size_t i = 0; i < pool.started; i++) qk_join(&pool.workers[i].thread);
    qk_release(pool.workers), qk_release(pool.shares);
    qk_end_slot(here);
}
