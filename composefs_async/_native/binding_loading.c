/* The functions of composefs_async._native._core that read objects; see binding.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "binding.h"
#include "loading.h"

static PyObject *failures_of(const struct loading *loading)
{
    PyObject *list = PyList_New((Py_ssize_t)loading->failed);

    for (size_t i = 0; list && i < loading->failed; i++) {
        const struct loading_failure *failure = &loading->failures[i];
        Py_ssize_t width = failure->has_digest ? (Py_ssize_t)loading->params.algorithm->digest_size : 0;
        PyObject *each = Py_BuildValue("nisy#", (Py_ssize_t)failure->index, failure->error, failure->step,
                                       (const char *)failure->digest, width);
        if (!each || PyList_SetItem(list, (Py_ssize_t)i, each))
            Py_CLEAR(list);
    }
    return list;
}

/* The number of ids, or -1 with an exception. */
static Py_ssize_t count_of(const Py_buffer *ids, int number, struct verity_params *params)
{
    if (!verity_params_init(params, number, NULL)) {
        PyErr_Format(PyExc_ValueError, "there is no fs-verity hash algorithm with the number %d", number);
        return -1;
    }
    if (ids->len % (Py_ssize_t)params->algorithm->digest_size == 0)
        return ids->len / (Py_ssize_t)params->algorithm->digest_size;
    PyErr_Format(PyExc_ValueError, "%zd bytes are no ids of this algorithm", ids->len);
    return -1;
}

PyObject *core_object_sizes(PyObject *module, PyObject *args)
{
    struct verity_params params;
    PyObject *result = NULL;
    Py_ssize_t count;
    Py_buffer ids;
    int objects, number;

    (void)module;
    if (!PyArg_ParseTuple(args, "iy*i:object_sizes", &objects, &ids, &number))
        return NULL;
    count = count_of(&ids, number, &params);
    if (count >= 0)
        result = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(int64_t));
    if (result) {
        int64_t *sizes = (int64_t *)(void *)PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS
        loading_sizes(objects, ids.buf, (size_t)count, params.algorithm->digest_size, sizes);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&ids);
    return result;
}

static PyObject *run_loading(struct loading *loading, const Py_buffer *ids, size_t count)
{
    PyObject *result = NULL;
    ptrdiff_t taken = -1;

    loading->sizes = PyMem_Calloc(count + 1, sizeof *loading->sizes);
    loading->failures = PyMem_Calloc(2 * count + 1, sizeof *loading->failures);
    if (loading->sizes && loading->failures) {
        Py_BEGIN_ALLOW_THREADS
        taken = loading_run(loading, ids->buf, count);
        Py_END_ALLOW_THREADS
    }
    if (taken < 0)
        PyErr_NoMemory();
    else
        result = Py_BuildValue("ny#N", (Py_ssize_t)taken, (const char *)loading->sizes,
                               (Py_ssize_t)((size_t)taken * sizeof *loading->sizes), failures_of(loading));
    PyMem_Free(loading->sizes);
    PyMem_Free(loading->failures);
    return result;
}

PyObject *core_load_objects(PyObject *module, PyObject *args)
{
    struct loading loading = {0};
    PyObject *result = NULL;
    Py_buffer ids, buffer;
    Py_ssize_t count;
    int number, measure;

    (void)module;
    if (!PyArg_ParseTuple(args, "iy*w*ip:load_objects", &loading.objects, &ids, &buffer, &number, &measure))
        return NULL;
    count = count_of(&ids, number, &loading.params);
    loading.measure = measure != 0;
    loading.buffer = buffer.buf;
    loading.capacity = (size_t)buffer.len;
    if (count >= 0)
        result = run_loading(&loading, &ids, (size_t)count);
    PyBuffer_Release(&buffer);
    PyBuffer_Release(&ids);
    return result;
}

/* The descriptor of objects/, the buffers, and where in the piece to go on. */
struct merge_args {
    Py_buffer table, piece, third;
    Py_ssize_t at;
    unsigned long long left;
    int number;
};

static int merge_prepare(struct merge *merge, const struct merge_args *args)
{
    Py_ssize_t count = count_of(&args->table, args->number, &merge->loading.params);

    if (count < 0)
        return -1;
    if (args->at < 0 || args->at > args->piece.len) {
        PyErr_SetString(PyExc_ValueError, "outside of the piece");
        return -1;
    }
    merge->table = args->table.buf;
    merge->count = (size_t)count;
    merge->piece = args->piece.buf;
    merge->size = (size_t)args->piece.len;
    merge->at = (size_t)args->at;
    merge->left = args->left;
    return 0;
}

static void merge_release(struct merge_args *args)
{
    PyBuffer_Release(&args->table);
    PyBuffer_Release(&args->piece);
    PyBuffer_Release(&args->third);
}

static PyObject *run_merge(struct merge *merge)
{
    PyObject *result = NULL;
    int status = -1;

    merge->loading.sizes = PyMem_Malloc((MERGE_ITEMS + 1) * sizeof *merge->loading.sizes);
    merge->loading.failures = PyMem_Malloc(2 * (MERGE_ITEMS + 1) * sizeof *merge->loading.failures);
    if (merge->loading.sizes && merge->loading.failures) {
        Py_BEGIN_ALLOW_THREADS
        status = merge_run(merge);
        Py_END_ALLOW_THREADS
    }
    if (status < 0)
        PyErr_NoMemory();
    else
        result = Py_BuildValue("inKnLN", status, (Py_ssize_t)merge->at, (unsigned long long)merge->left,
                               (Py_ssize_t)merge->filled, (long long)merge->value, failures_of(&merge->loading));
    PyMem_Free(merge->loading.sizes);
    PyMem_Free(merge->loading.failures);
    return result;
}

PyObject *core_merge_chunks(PyObject *module, PyObject *args)
{
    struct merge merge = {0};
    struct merge_args parsed;
    PyObject *result = NULL;
    Py_buffer used;
    int measure;

    (void)module;
    if (!PyArg_ParseTuple(args, "iy*w*y*nKw*ip:merge_chunks", &merge.loading.objects, &parsed.table, &used,
                          &parsed.piece, &parsed.at, &parsed.left, &parsed.third, &parsed.number, &measure))
        return NULL;
    merge.loading.measure = measure != 0;
    merge.loading.buffer = parsed.third.buf;
    merge.loading.capacity = (size_t)parsed.third.len;
    merge.used = used.buf;
    if (merge_prepare(&merge, &parsed) == 0) {
        if ((size_t)used.len != merge.count)
            PyErr_SetString(PyExc_ValueError, "there is not one mark for each object");
        else
            result = run_merge(&merge);
    }
    PyBuffer_Release(&used);
    merge_release(&parsed);
    return result;
}

PyObject *core_merged_size(PyObject *module, PyObject *args)
{
    struct merge merge = {0};
    struct merge_args parsed;
    PyObject *result = NULL;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*nKy*i:merged_size", &parsed.table, &parsed.piece, &parsed.at, &parsed.left,
                          &parsed.third, &parsed.number))
        return NULL;
    if (merge_prepare(&merge, &parsed) == 0) {
        uint64_t total = 0;
        int status;
        if ((size_t)parsed.third.len != merge.count * sizeof(int64_t)) {
            PyErr_SetString(PyExc_ValueError, "there is not one size for each object");
        } else {
            Py_BEGIN_ALLOW_THREADS
            status = merge_sizes(&merge, parsed.third.buf, &total);
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("inKKL", status, (Py_ssize_t)merge.at, (unsigned long long)merge.left,
                                   (unsigned long long)total, (long long)merge.value);
        }
    }
    merge_release(&parsed);
    return result;
}
