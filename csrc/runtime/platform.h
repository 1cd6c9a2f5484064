/* What differs between Linux, macOS and other systems with POSIX threads: how many CPUs there are, and what a new
 * thread is told. For parallel.c alone, whose state this is. */
#ifndef QK_PLATFORM_H
#define QK_PLATFORM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* before the first header of the system */
#endif
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

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

#endif
