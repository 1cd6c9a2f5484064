/* How a file says which instructions its functions may use. */
#ifndef QK_TARGET_PRAGMA_H
#define QK_TARGET_PRAGMA_H

/* Functions from here to QK_TARGET_END may use instructions of `features`; what follows them is for gcc alone. */
#ifndef QK_TARGET_BEGIN
#define QK_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#define QK_TARGET_BEGIN(features, ...)                                                                                 \
    QK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define QK_TARGET_END QK_PRAGMA(clang attribute pop)
#else
#define QK_TARGET_BEGIN(...) QK_PRAGMA(GCC target(__VA_ARGS__))
#define QK_TARGET_END /* gcc's end with the file */
#endif
#endif

#endif
