/* DLPack's table of functions, which torch.Tensor carries: one call gives a tensor's memory, sizes and
 * strides, where Python takes a part of a microsecond for each attribute. */

typedef struct { /* DLTensor */
    char *data;
    int32_t device, device_index, dims;
    uint8_t kind, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
} Seen;

typedef struct { /* DLPackExchangeAPI */
    uint32_t major, minor;
    void *older, *allocate, *take, *give;
    int (*see)(void *tensor, Seen *seen);
} Exchange;

/* The table of `tensor_type`, torch.Tensor; null, with an error set, if it has none that is known. */
static const Exchange *exchange_of(PyObject *tensor_type) {
    PyObject *table = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
    const Exchange *found = table ? PyCapsule_GetPointer(table, "dlpack_exchange_api") : NULL;
    if (!found || (found->major == 1 && found->see)) return found;
    PyErr_SetString(PyExc_ImportError, "torch.Tensor: expected DLPack's exchange table, version 1");
    return NULL;
}
