/* Answers CPUID for libraries whose CPUID instructions were replaced by UD2 (without_vnni.py): as this processor would,
   without every form of VNNI and, unless KEEP_AVX512 is defined, without AVX-512. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))

#ifdef KEEP_AVX512
#define WIDE 0
#else
#define WIDE ~0u
#endif

static void without_vnni(unsigned leaf, unsigned sub, unsigned *a, unsigned *b, unsigned *c, unsigned *d)
{
    if (leaf == 7 && sub == 0) {
        *b &= ~(WIDE & (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31))); /* AVX-512 */
        *c &= ~(BIT(11) | (WIDE & (BIT(1) | BIT(6) | BIT(12) | BIT(14)))); /* VNNI; VBMI, VBMI2, BITALG, VPOPCNTDQ */
        *d &= ~(BIT(2) | BIT(22) | BIT(24) | BIT(25) | (WIDE & (BIT(3) | BIT(8) | BIT(23)))); /* 4VNNIW, AMX; FP16 */
    } else if (leaf == 7 && sub == 1) {
        *a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
        *d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)); /* VNNI-INT8, -INT16, AMX-COMPLEX, AVX10 */
    } else if (leaf == 0xd && sub == 0) {
        *a &= ~(BIT(17) | BIT(18) | (WIDE & (BIT(5) | BIT(6) | BIT(7)))); /* registers of AMX; of AVX-512 */
    }
}

static void answer(int signal, siginfo_t *info, void *context)
{
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)r[REG_RIP];
    unsigned a, b, c, d, leaf = (unsigned)r[REG_RAX], sub = (unsigned)r[REG_RCX];
    if (at[0] != 0x0f || at[1] != 0x0b)
        return;
    __cpuid_count(leaf, sub, a, b, c, d);
    without_vnni(leaf, sub, &a, &b, &c, &d);
    r[REG_RAX] = a;
    r[REG_RBX] = b;
    r[REG_RCX] = c;
    r[REG_RDX] = d;
    r[REG_RIP] += 2;
}

typedef int (*set_action)(int, const struct sigaction *, struct sigaction *);

static set_action next(void)
{
    static set_action found;
    if (!found)
        found = (set_action)dlsym(RTLD_NEXT, "sigaction");
    return found;
}

__attribute__((constructor)) static void install(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    next()(SIGILL, &action, NULL);
}

/* Python's faulthandler and others must not take the signal away. */
int sigaction(int signal, const struct sigaction *action, struct sigaction *old)
{
    return next()(signal, signal == SIGILL ? NULL : action, old);
}
