/* What differs between systems: threads and what they wait for, the clock, how many CPUs there are. For parallel.c
 * alone, whose state this is. First what POSIX has, then the same by Windows. */
#ifndef QK_PLATFORM_H
#define QK_PLATFORM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* before the first header of the system */
#endif
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* A thread runs serve(argument). The struct must stay where it is as long as the thread lives. */
#ifdef _WIN32
typedef void *qk_thread_handle;
#else
#include <pthread.h>
typedef pthread_t qk_thread_handle;
#endif
typedef struct {
    qk_thread_handle handle;
    void (*serve)(void *);
    void *argument;
} qk_thread;

#ifndef _WIN32
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

typedef pthread_t qk_thread_id;
typedef pthread_mutex_t qk_lock;
typedef pthread_cond_t qk_bell;
typedef pthread_key_t qk_slot; /* a pointer of each thread; not _Thread_local, whose memory glibc cannot do without */
#define QK_LOCK PTHREAD_MUTEX_INITIALIZER
#define QK_BELL PTHREAD_COND_INITIALIZER

static inline void qk_take(qk_lock *lock) { pthread_mutex_lock(lock); }
static inline void qk_give(qk_lock *lock) { pthread_mutex_unlock(lock); }
static inline void qk_ring(qk_bell *bell) { pthread_cond_signal(bell); }
static inline void qk_wait(qk_bell *bell, qk_lock *lock) { pthread_cond_wait(bell, lock); }

/* Waits so many nanoseconds, which are less than a second, at most. Returns whether they are over. */
static inline int qk_wait_briefly(qk_bell *bell, qk_lock *lock, int64_t most)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)most;
    if (until.tv_nsec >= 1000000000) until.tv_nsec -= 1000000000, until.tv_sec++;
    return pthread_cond_timedwait(bell, lock, &until) == ETIMEDOUT;
}

static inline void qk_make_slot(qk_slot *slot) { pthread_key_create(slot, NULL); }
static inline void qk_end_slot(qk_slot slot) { pthread_key_delete(slot); }
static inline void *qk_held(qk_slot slot) { return pthread_getspecific(slot); }
static inline int qk_hold(qk_slot slot, void *pointer) { return pthread_setspecific(slot, pointer) == 0; }

static inline qk_thread_id qk_this_thread(void) { return pthread_self(); }
static inline int qk_is_this_thread(qk_thread_id id) { return pthread_equal(id, pthread_self()); }

static inline void *qk_serve(void *thread)
{
    qk_thread *t = thread;
    t->serve(t->argument);
    return NULL;
}

/* Signals are for the threads of the program; those that a fault raises come to the thread at fault. */
static inline int qk_start_thread(qk_thread *t, size_t stack)
{
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigset_t none, before;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setstacksize(&attributes, stack);
    sigfillset(&none);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&none, faults[i]);
    pthread_sigmask(SIG_SETMASK, &none, &before);
    const int started = pthread_create(&t->handle, &attributes, qk_serve, t) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return started;
}

static inline void qk_join(qk_thread *t) { pthread_join(t->handle, NULL); }
enum { QK_CAN_JOIN_AT_END = 1 };

static inline void qk_after_fork_in_child(void (*child)(void)) { pthread_atfork(NULL, NULL, child); }

static inline int64_t qk_now(void) /* in nanoseconds */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

static inline int64_t qk_cpu_time(void) /* of this thread; on Windows 0, where it is told in steps of many loops */
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

#ifdef __linux__
static cpu_set_t qk_cpus_at_load; /* that this process may use, before any OpenMP runtime binds its threads */
static int qk_bound;              /* whether one is going to */
#endif

/* Sees what must be seen before the program has done anything. */
static inline void qk_look_at_platform(void)
{
#ifdef __linux__
    const char *bind = getenv("OMP_PROC_BIND");
    qk_bound = bind && *bind && strcasecmp(bind, "false") &&
        sched_getaffinity(0, sizeof qk_cpus_at_load, &qk_cpus_at_load) == 0;
#endif
}

/* CPUs that this process may use. */
static inline int qk_usable_cpus(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (qk_bound) return CPU_COUNT(&qk_cpus_at_load);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

/* CPUs of the machine, or less than 1. */
static inline long qk_machine_cpus(void) { return sysconf(_SC_NPROCESSORS_CONF); }

/* Lets the calling thread, a worker, run wherever the process may, and names it. */
static inline void qk_set_up_worker(void)
{
#if defined(__linux__)
    if (qk_bound) pthread_setaffinity_np(pthread_self(), sizeof qk_cpus_at_load, &qk_cpus_at_load);
    pthread_setname_np(pthread_self(), "qkernels");
#elif defined(__APPLE__)
    pthread_setname_np("qkernels");
#endif
}

#else
#define WIN32_LEAN_AND_MEAN
#include <process.h>
#include <windows.h>

typedef DWORD qk_thread_id;
typedef SRWLOCK qk_lock;
typedef CONDITION_VARIABLE qk_bell;
typedef DWORD qk_slot;
#define QK_LOCK SRWLOCK_INIT
#define QK_BELL CONDITION_VARIABLE_INIT

static inline void qk_take(qk_lock *lock) { AcquireSRWLockExclusive(lock); }
static inline void qk_give(qk_lock *lock) { ReleaseSRWLockExclusive(lock); }
static inline void qk_ring(qk_bell *bell) { WakeConditionVariable(bell); }
static inline void qk_wait(qk_bell *bell, qk_lock *lock) { SleepConditionVariableSRW(bell, lock, INFINITE, 0); }
static inline int qk_wait_briefly(qk_bell *bell, qk_lock *lock, int64_t most)
{
    return !SleepConditionVariableSRW(bell, lock, (DWORD)(most / 1000000), 0);
}

static inline void qk_make_slot(qk_slot *slot) { *slot = TlsAlloc(); }
static inline void qk_end_slot(qk_slot slot) { TlsFree(slot); }
static inline void *qk_held(qk_slot slot)
{
    const DWORD error = GetLastError(); /* which belongs to the caller, and TlsGetValue clears it */
    void *pointer = TlsGetValue(slot);
    SetLastError(error);
    return pointer;
}
static inline int qk_hold(qk_slot slot, void *pointer) { return TlsSetValue(slot, pointer); }

static inline qk_thread_id qk_this_thread(void) { return GetCurrentThreadId(); }
static inline int qk_is_this_thread(qk_thread_id id) { return id == GetCurrentThreadId(); }

static inline unsigned __stdcall qk_serve(void *thread)
{
    qk_thread *t = thread;
    t->serve(t->argument);
    return 0;
}

/* A DLL that has threads stays in memory until the process ends, and then Windows has ended them before it tells us. */
static inline int qk_start_thread(qk_thread *t, size_t stack)
{
    HMODULE self;
    if (!GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN,
                            (const char *)(uintptr_t)qk_serve, &self))
        return 0;
    t->handle = (void *)_beginthreadex(NULL, (unsigned)stack, qk_serve, t, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    return t->handle != NULL;
}

static inline void qk_join(qk_thread *t)
{
    WaitForSingleObject(t->handle, INFINITE);
    CloseHandle(t->handle);
}
enum { QK_CAN_JOIN_AT_END = 0 };

static inline void qk_after_fork_in_child(void (*child)(void)) { (void)child; }

static inline int64_t qk_now(void)
{
    LARGE_INTEGER ticks, each_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&each_second);
    const int64_t t = ticks.QuadPart, f = each_second.QuadPart;
    return t / f * 1000000000 + t % f * 1000000000 / f;
}

static inline int64_t qk_cpu_time(void) { return 0; }

static inline void qk_look_at_platform(void) {}

static inline long qk_machine_cpus(void) { return (long)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS); }

/* What limits a process to some CPUs is a mask, and tells nothing where there are more than 64. */
static inline int qk_usable_cpus(void)
{
    DWORD_PTR own = 0, all = 0;
    const long machine = qk_machine_cpus();
    if (machine <= 64 && GetProcessAffinityMask(GetCurrentProcess(), &own, &all) && own)
        return __builtin_popcountll(own);
    return machine > 0 ? (int)machine : 1;
}

static inline void qk_set_up_worker(void) {}
#endif

#endif
