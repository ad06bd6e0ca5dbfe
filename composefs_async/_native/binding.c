/* The module composefs_async._native._core: arguments in, results out, and the interpreter lock given away between.
 * Limited API of CPython 3.11; everything that does the work is in the other files and knows no Python. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdlib.h>

#include "binding.h"
#include "files.h"
#include "store.h"

/* -- arguments ------------------------------------------------------------------------------------------------ */

struct buffers {
    size_t count;
    Py_buffer *views;
    struct verity_item *items;
};

static void buffers_release(struct buffers *buffers)
{
    for (size_t i = 0; i < buffers->count; i++)
        PyBuffer_Release(&buffers->views[i]);
    PyMem_Free(buffers->views);
    PyMem_Free(buffers->items);
}

static int buffers_add(struct buffers *buffers, PyObject *sequence, Py_ssize_t index)
{
    PyObject *item = PySequence_GetItem(sequence, index);
    Py_buffer *view = &buffers->views[buffers->count];
    int status;

    if (!item)
        return -1;
    status = PyObject_GetBuffer(item, view, PyBUF_SIMPLE);
    Py_DECREF(item);
    if (status)
        return -1;
    buffers->items[buffers->count++] = (struct verity_item){view->buf, (size_t)view->len};
    return 0;
}

/* Holds all buffers of the sequence, so that they neither move nor go away.  Returns -1 with an exception. */
static int buffers_acquire(struct buffers *buffers, PyObject *sequence)
{
    Py_ssize_t count = PySequence_Size(sequence);

    *buffers = (struct buffers){0, NULL, NULL};
    if (count < 0)
        return -1;
    buffers->views = PyMem_Calloc((size_t)count + 1, sizeof *buffers->views);
    buffers->items = PyMem_Calloc((size_t)count + 1, sizeof *buffers->items);
    if (!buffers->views || !buffers->items) {
        buffers_release(buffers);
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (buffers_add(buffers, sequence, i)) {
            buffers_release(buffers);
            return -1;
        }
    }
    return 0;
}

static int params_of(struct verity_params *params, int algorithm, const char *implementation)
{
    if (verity_params_init(params, algorithm, implementation))
        return 0;
    if (!sha2_by_number(algorithm))
        PyErr_Format(PyExc_ValueError, "there is no fs-verity hash algorithm with the number %d", algorithm);
    else
        PyErr_Format(PyExc_ValueError, "this processor has no implementation named '%s'", implementation);
    return -1;
}

static PyObject *bytes_for(size_t count, size_t size)
{
    if (count > (size_t)PY_SSIZE_T_MAX / size)
        return PyErr_NoMemory();
    return PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * size));
}

static uint8_t *inside(PyObject *bytes)
{
    return (uint8_t *)PyBytes_AsString(bytes);
}

/* -- functions ------------------------------------------------------------------------------------------------ */

PyDoc_STRVAR(implementations_doc, "implementations(algorithm, /)\n--\n\n"
                                  "Names of the implementations that this processor can run, fastest first.");

static PyObject *core_implementations(PyObject *module, PyObject *args)
{
    const struct sha2_algorithm *algorithm;
    PyObject *names, *result;
    int number;

    (void)module;
    if (!PyArg_ParseTuple(args, "i:implementations", &number))
        return NULL;
    algorithm = sha2_by_number(number);
    if (!algorithm)
        return PyErr_Format(PyExc_ValueError, "there is no fs-verity hash algorithm with the number %d", number);
    names = PyList_New(0);
    for (const struct sha2_implementation *const *each = algorithm->implementations; names && *each; each++) {
        PyObject *name = (*each)->usable() ? PyUnicode_FromString((*each)->name) : NULL;
        if (name && PyList_Append(names, name))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    if (!names || PyErr_Occurred()) {
        Py_XDECREF(names);
        return NULL;
    }
    result = PyList_AsTuple(names);
    Py_DECREF(names);
    return result;
}

PyDoc_STRVAR(hash_blocks_doc, "hash_blocks(data, algorithm, implementation=None, /)\n--\n\n"
                              "Concatenated hashes of the 4096-byte blocks, the last one as if zeros followed.");

static PyObject *core_hash_blocks(PyObject *module, PyObject *args)
{
    struct verity_params params;
    const char *implementation = NULL;
    PyObject *result = NULL;
    Py_buffer data;
    int number;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*i|z:hash_blocks", &data, &number, &implementation))
        return NULL;
    if (params_of(&params, number, implementation) == 0) {
        size_t size = (size_t)data.len, blocks = size / VERITY_BLOCK + (size % VERITY_BLOCK != 0);
        result = bytes_for(blocks, params.algorithm->digest_size);
    }
    if (result) {
        uint8_t *out = inside(result);
        Py_BEGIN_ALLOW_THREADS
        verity_hash_blocks(&params, data.buf, (size_t)data.len, out);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return result;
}

PyDoc_STRVAR(digest_many_doc, "digest_many(items, algorithm, implementation=None, /)\n--\n\n"
                              "Concatenated fs-verity digests of the items.");

static PyObject *core_digest_many(PyObject *module, PyObject *args)
{
    struct verity_params params;
    struct buffers buffers;
    const char *implementation = NULL;
    PyObject *items, *result;
    int number;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oi|z:digest_many", &items, &number, &implementation) ||
        params_of(&params, number, implementation) || buffers_acquire(&buffers, items))
        return NULL;
    result = bytes_for(buffers.count, params.algorithm->digest_size);
    if (result) {
        uint8_t *out = inside(result);
        int status;
        Py_BEGIN_ALLOW_THREADS
        status = verity_digest_many(&params, buffers.items, buffers.count, out);
        Py_END_ALLOW_THREADS
        if (status) {
            Py_CLEAR(result);
            PyErr_NoMemory();
        }
    }
    buffers_release(&buffers);
    return result;
}

/* What came of the files: bytes for a digest, int for an errno. */
static PyObject *file_results(const struct verity_params *params, const uint8_t *out, const int *errors, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    size_t digest = params->algorithm->digest_size;

    for (size_t i = 0; list && i < count; i++) {
        PyObject *each = errors[i] ? PyLong_FromLong(errors[i])
                                   : PyBytes_FromStringAndSize((const char *)out + i * digest, (Py_ssize_t)digest);
        if (!each || PyList_SetItem(list, (Py_ssize_t)i, each))
            Py_CLEAR(list);
    }
    return list;
}

static int descriptors_of(PyObject *sequence, int *fds, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        long value = item ? PyLong_AsLong(item) : -1;
        Py_XDECREF(item);
        if (value == -1 && PyErr_Occurred())
            return -1;
        /* One that cannot be a descriptor gets EBADF from the kernel like any other wrong one. */
        fds[i] = value < 0 || value > INT_MAX ? -1 : (int)value;
    }
    return 0;
}

PyDoc_STRVAR(digest_files_doc, "digest_files(fds, algorithm, /)\n--\n\n"
                               "For each file its fs-verity digest as bytes, or an errno.");

static PyObject *core_digest_files(PyObject *module, PyObject *args)
{
    struct verity_params params;
    PyObject *sequence, *result = NULL;
    int number, status, *fds, *errors;
    Py_ssize_t count;
    uint8_t *out;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oi:digest_files", &sequence, &number) || params_of(&params, number, NULL))
        return NULL;
    count = PySequence_Size(sequence);
    if (count < 0)
        return NULL;
    fds = PyMem_Calloc((size_t)count + 1, sizeof *fds);
    errors = PyMem_Calloc((size_t)count + 1, sizeof *errors);
    out = PyMem_Calloc((size_t)count + 1, SHA2_MAX_DIGEST);
    if (!fds || !errors || !out) {
        PyErr_NoMemory();
    } else if (descriptors_of(sequence, fds, count) == 0) {
        Py_BEGIN_ALLOW_THREADS
        status = files_digest(&params, fds, (size_t)count, out, errors);
        Py_END_ALLOW_THREADS
        result = status ? PyErr_NoMemory() : file_results(&params, out, errors, (size_t)count);
    }
    PyMem_Free(fds);
    PyMem_Free(errors);
    PyMem_Free(out);
    return result;
}

static PyObject *failure_list(const struct store_failure *failures, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);

    for (size_t i = 0; list && i < count; i++) {
        PyObject *each = Py_BuildValue("nis", (Py_ssize_t)failures[i].index, failures[i].error, failures[i].step);
        if (!each || PyList_SetItem(list, (Py_ssize_t)i, each))
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *run_store(struct store_batch *batch, const struct buffers *buffers)
{
    PyObject *ids = bytes_for(buffers->count, batch->params.algorithm->digest_size);
    PyObject *outcomes = bytes_for(buffers->count, 1), *list = NULL;
    struct store_failure *failures = PyMem_Calloc(buffers->count + 1, sizeof *failures);
    ptrdiff_t status = -1;

    if (ids && outcomes && failures) {
        uint8_t *to_ids = inside(ids), *to_outcomes = inside(outcomes);
        Py_BEGIN_ALLOW_THREADS
        status = store_batch_run(batch, buffers->items, buffers->count, to_ids, to_outcomes, failures);
        Py_END_ALLOW_THREADS
        if (status >= 0)
            list = failure_list(failures, (size_t)status);
    }
    if (status < 0 && !PyErr_Occurred())
        PyErr_NoMemory();
    PyMem_Free(failures);
    if (!list) {
        Py_XDECREF(ids);
        Py_XDECREF(outcomes);
        return NULL;
    }
    return Py_BuildValue("NNNi", ids, outcomes, list, (int)batch->support);
}

PyDoc_STRVAR(store_doc, "store(objects_fd, items, algorithm, verity, tmpfile=True, /)\n--\n\n"
                        "Store a batch of objects: (ids, outcomes, failures, whether verity is supported).");

static PyObject *core_store(PyObject *module, PyObject *args)
{
    struct store_batch batch = {.tmpfile = true};
    struct buffers buffers;
    PyObject *items, *result;
    int number, verity, tmpfile = 1;

    (void)module;
    if (!PyArg_ParseTuple(args, "iOii|p:store", &batch.objects, &items, &number, &verity, &tmpfile) ||
        params_of(&batch.params, number, NULL))
        return NULL;
    if (verity < STORE_VERITY_NEVER || verity > STORE_VERITY_REQUIRE)
        return PyErr_Format(PyExc_ValueError, "verity is 0, 1 or 2, not %d", verity);
    if (buffers_acquire(&buffers, items))
        return NULL;
    batch.verity = (enum store_verity)verity;
    batch.tmpfile = tmpfile != 0;
    result = run_store(&batch, &buffers);
    buffers_release(&buffers);
    return result;
}

PyDoc_STRVAR(sort_ids_doc, "sort_ids(ids, width, /)\n--\n\nThe ids sorted, each once.");

PyDoc_STRVAR(compare_shard_doc, "compare_shard(objects_fd, shard, ids, width, since, /)\n--\n\n"
                                "A directory of objects against a sorted table: (errno, matched, ids of the others, "
                                "their sizes, ids of the young, [(name, mode)] of what is no object).");

PyDoc_STRVAR(remove_objects_doc, "remove_objects(objects_fd, ids, width, /)\n--\n\n"
                                 "Unlink objects up to an error: (a byte for each, whether it was there, errno).");

/* -- the module ----------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(object_sizes_doc, "object_sizes(objects_fd, ids, algorithm, /)\n--\n\n"
                               "Native 64-bit numbers: the size of each object, or a negative errno.");

PyDoc_STRVAR(load_objects_doc, "load_objects(objects_fd, ids, buffer, algorithm, measure, /)\n--\n\n"
                               "Read and check as many objects as fit: (taken, sizes, failures).");

PyDoc_STRVAR(merge_chunks_doc, "merge_chunks(objects_fd, table, used, piece, at, left, buffer, algorithm, measure, /)\n--\n\n"
                               "Content of a splitstream: (status, at, left, filled, value, failures).");

PyDoc_STRVAR(merged_size_doc, "merged_size(table, piece, at, left, sizes, algorithm, /)\n--\n\n"
                              "Its size: (status, at, left, total, value).");

PyDoc_STRVAR(scan_files_doc, "scan_files(fds, names, algorithm, inline_max, attributes, objects_fd, verity, /)\n--\n\n"
                             "Look at files by name: (records, ids, contents, attributes, failure, whether verity is "
                             "supported).");

PyDoc_STRVAR(split_members_doc, "split_members(view, at, inside, inline_max, file_max, items, /)\n--\n\n"
                                "Pass ordinary members of a tar archive: (at, inside).");

PyDoc_STRVAR(sha256_pair_doc, "sha256_pair()\n--\n\nThe state of two SHA-256 streams, or None.");

PyDoc_STRVAR(sha256_pair_update_doc, "sha256_pair_update(state, pieces, other, /)\n--\n\nHash both streams in step.");

PyDoc_STRVAR(sha256_pair_digests_doc, "sha256_pair_digests(state, /)\n--\n\nThe digests of what came so far.");

PyDoc_STRVAR(read_members_doc, "read_members(body, index, at, base, entries, object_type, make, entry_type, types, /)\n--"
                               "\n\nRead members of a stored layer: (index, at, base).");

static PyMethodDef methods[] = {
    {"implementations", core_implementations, METH_VARARGS, implementations_doc},
    {"hash_blocks", core_hash_blocks, METH_VARARGS, hash_blocks_doc},
    {"digest_many", core_digest_many, METH_VARARGS, digest_many_doc},
    {"digest_files", core_digest_files, METH_VARARGS, digest_files_doc},
    {"store", core_store, METH_VARARGS, store_doc},
    {"sort_ids", core_sort_ids, METH_VARARGS, sort_ids_doc},
    {"compare_shard", core_compare_shard, METH_VARARGS, compare_shard_doc},
    {"remove_objects", core_remove_objects, METH_VARARGS, remove_objects_doc},
    {"object_sizes", core_object_sizes, METH_VARARGS, object_sizes_doc},
    {"load_objects", core_load_objects, METH_VARARGS, load_objects_doc},
    {"merge_chunks", core_merge_chunks, METH_VARARGS, merge_chunks_doc},
    {"merged_size", core_merged_size, METH_VARARGS, merged_size_doc},
    {"scan_files", core_scan_files, METH_VARARGS, scan_files_doc},
    {"sha256_pair", core_sha256_pair, METH_VARARGS, sha256_pair_doc},
    {"sha256_pair_update", core_sha256_pair_update, METH_VARARGS, sha256_pair_update_doc},
    {"sha256_pair_digests", core_sha256_pair_digests, METH_VARARGS, sha256_pair_digests_doc},
    {"read_members", core_read_members, METH_VARARGS, read_members_doc},
    {"split_members", core_split_members, METH_VARARGS, split_members_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "fs-verity digests and the batch store, without the interpreter lock.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
