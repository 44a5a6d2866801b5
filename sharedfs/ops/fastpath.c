/* What is asked most in C: READ and WRITE of files, threads and tenants that are known already, GETATTR, and LOOKUP of
 * names that are not there.
 *
 * `FastPath.next(request)` stands where the channel's request pump reads the device: it answers what it can, and
 * returns the length of the first request that wants Python, or of any when many wait and are to be served in turns.
 * `FastPath.serve(request)` answers one request, or not.
 * What is not answered has had no effect, so Python (sharedfs/ops/data.py, name_dispatch.py) can do it from the start: whatever is
 * rare, new or an error is written once, there. Both ways pass the same tests.
 *
 * It knows nothing that must outlive a request: counters, when it may sleep, where the last write ended. The dicts are
 * Python's, and so are the books: everything here holds the GIL but while it waits for a request and while it copies
 * much.
 *
 * Layouts are those of linux/fuse.h. Numbers that Python has too are handed over by it (see `FastPath.__init__`), but
 * for EDGE_PAGES, which tests hold to sharedfs/storage/room.py.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* A copy of this size takes longer than giving the GIL away and taking it back. */
#define LONG_COPY_BYTES (32 << 10)
/* After a request the next one is looked for this long before the thread goes to sleep: waking an idle CPU costs 20 us
 * and more, and who asks one thing after the other asks again within this time. */
#define LOOK_NS 50000
#define LOOKS_PER_YIELD 4
/* So many requests in a row were there already when we looked: more wait than are served, and Python serves in turns. */
#define REQUESTS_IN_A_ROW 16
/* Who was away this long in sched_yield() was in somebody's way: then to wait is better than to look. */
#define IN_THE_WAY_NS 20000
#define SLEEP_AT_ONCE_NS 2000000
/* Pages that a write touches beyond its own, one at each end, as sharedfs/storage/room.py counts them. */
#define EDGE_PAGES 2
/* A write makes no more pages than it has bytes for and one at each end. */
#define EDGES_BYTES (2 * (64 << 10))

typedef struct {
    PyObject_HEAD
    int device_fd;
    Py_ssize_t max_read;
    PyObject *nodes, *paths, *removed, *files; /* dicts of the store and the data path */
    unsigned long long entry_seconds;          /* how long the kernel may keep what it is told */
    PyObject *callers, *verified; /* of sharedfs/accounting/callers.py, and its dict */
    PyObject *ledger, *touch, *charge; /* of the books */
    PyObject *settled, *settled_bytes; /* sharedfs/ledger/no_op_cache.py, and its dict */
    PyObject *left;               /* what is left of tenants' allowances (sharedfs/accounting/quota.py) */
    PyObject *above;              /* the cgroups at and above tenants, and */
    PyObject *left_above;         /* what is left there (sharedfs/accounting/ancestors.py) */
    Py_buffer *heads;             /* what moves when a thread has changed its cgroup or ended, a CPU each */
    Py_ssize_t cpus;
    Py_buffer credit;             /* bytes that may be made before sharedfs/storage/room.py looks at the limits of memory */
    long page_bytes;
    uint64_t last_node, last_end; /* the file that was written last is at least so long, unless Python did something since */
    int leaves, rests; /* the process is about to end; nobody reads the device, nor will */
    char *reply;
    unsigned long long reads, writes, attributes, absent;
    int enabled;
    int busy;
    int in_a_row;             /* requests that did not have to be waited for */
    int look;                 /* the last request came soon after the one before it */
    long long sleep_until_ns; /* do not look before: somebody else needs this CPU */
} FastPath;

static PyObject *verified_at_name, *set_id_name, *may_be_mapped_name, *sequence_name, *at_name;

static long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* The value of an int in a dict; 0 when it is not there, -1 with an exception. */
static int look_up_int(PyObject *dict, PyObject *key, int *value)
{
    PyObject *found = PyDict_GetItemWithError(dict, key);
    if (found == NULL)
        return PyErr_Occurred() ? -1 : 0;
    *value = (int)PyLong_AsLong(found);
    return 1;
}

/* The tenant of a thread, when nobody has moved or ended since Python read its cgroup. Borrowed; NULL for no such. */
static PyObject *tenant_of(FastPath *self, uint32_t thread_id)
{
    uint64_t events = 0;
    PyObject *key, *verified_at, *tenant = NULL;

    for (Py_ssize_t cpu = 0; cpu < self->cpus; cpu++)
        events += __atomic_load_n((const uint64_t *)self->heads[cpu].buf, __ATOMIC_ACQUIRE);
    verified_at = PyObject_GetAttr(self->callers, verified_at_name);
    if (verified_at == NULL)
        return NULL;
    if (PyLong_AsUnsignedLongLong(verified_at) == events && (key = PyLong_FromUnsignedLong(thread_id)) != NULL) {
        tenant = PyDict_GetItemWithError(self->verified, key);
        Py_DECREF(key);
    }
    Py_DECREF(verified_at);
    return tenant;
}

/* Whether it is known that a use of a file changes nothing in the books (sharedfs/ledger/no_op_cache.py): below `end` for
 * a write, which may add pages, 0 for a read. -1 with an exception. */
static int is_settled(FastPath *self, PyObject *node, PyObject *tenant, uint64_t end)
{
    PyObject *sequence = PyObject_GetAttr(self->ledger, sequence_name);
    PyObject *settled_at = sequence ? PyObject_GetAttr(self->settled, at_name) : NULL;
    PyObject *files, *bytes;
    int same = settled_at ? PyObject_RichCompareBool(sequence, settled_at, Py_EQ) : -1;
    long long below;

    Py_XDECREF(sequence);
    Py_XDECREF(settled_at);
    if (same != 1)
        return same;
    files = PyDict_GetItemWithError(self->settled_bytes, tenant);
    bytes = files ? PyDict_GetItemWithError(files, node) : NULL;
    if (bytes == NULL)
        return PyErr_Occurred() ? -1 : 0;
    below = PyLong_AsLongLong(bytes);
    return below >= 0 && end <= (uint64_t)below;
}

/* Whether a key of `left` has so many bytes, or is not there. -1 with an exception. */
static int has_left(PyObject *left, PyObject *key, long long bytes)
{
    PyObject *found = PyDict_GetItemWithError(left, key);

    if (found != NULL && PyLong_AsLongLong(found) < bytes)
        return PyErr_Occurred() ? -1 : 0;
    return PyErr_Occurred() ? -1 : 1;
}

/* Whether a write surely stays within what is left to its tenant, and to all above it. -1 with an exception. */
static int is_allowed(FastPath *self, PyObject *node, PyObject *tenant, const struct fuse_write_in *in)
{
    long long needed = (long long)in->size + EDGES_BYTES;
    PyObject *places = NULL;
    int allowed;

    if (PyDict_GET_SIZE(self->left) == 0)
        return 1;
    allowed = has_left(self->left, tenant, needed);
    if (allowed == 1 && PyDict_GET_SIZE(self->left_above) != 0)
        places = PyDict_GetItemWithError(self->above, tenant);
    if (places != NULL && PyTuple_Check(places))
        for (Py_ssize_t i = 0; allowed == 1 && i < PyTuple_GET_SIZE(places); i++)
            allowed = has_left(self->left_above, PyTuple_GET_ITEM(places, i), needed);
    if (PyErr_Occurred())
        return -1;
    return allowed ? allowed : is_settled(self, node, tenant, in->offset + in->size);
}

/* A line in the books, where that is not known to be in vain: 1 when it is written, -1 with an exception. */
static int book(FastPath *self, PyObject *method, PyObject *node, uint64_t offset, ssize_t length, PyObject *tenant)
{
    PyObject *start, *end, *done = NULL;
    int settled = is_settled(self, node, tenant, method == self->charge ? offset + length : 0);

    if (settled != 0)
        return settled;
    start = PyLong_FromUnsignedLongLong(offset);
    end = PyLong_FromUnsignedLongLong(offset + length);
    if (start && end) {
        PyObject *arguments[] = {node, start, end, tenant};
        done = PyObject_Vectorcall(method, arguments, 4, NULL);
    }
    Py_XDECREF(start);
    Py_XDECREF(end);
    if (done == NULL)
        return -1;
    Py_DECREF(done);
    return 1;
}

/* Write a reply; a request that its caller gave up, or a connection that is over, is no error. */
static int send_reply(FastPath *self, void *reply, size_t length)
{
    ssize_t written;

    if (length > LONG_COPY_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        written = write(self->device_fd, reply, length);
        Py_END_ALLOW_THREADS
    } else {
        written = write(self->device_fd, reply, length);
    }
    if (written < 0 && errno != ENOENT && errno != ENODEV) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 1;
}

static int serve_read(FastPath *self, const struct fuse_in_header *header, const struct fuse_read_in *in, PyObject *node,
                      int fd)
{
    struct fuse_out_header *out = (struct fuse_out_header *)self->reply;
    char *data = self->reply + sizeof *out;
    PyObject *tenant;
    ssize_t length;

    /* Not read(2), or O_NOATIME, which this descriptor has not: see DataPath._read. */
    if (in->size > self->max_read || !(in->read_flags & FUSE_READ_LOCKOWNER) || in->flags & O_NOATIME)
        return 0;
    tenant = tenant_of(self, header->pid);
    if (tenant == NULL)
        return PyErr_Occurred() ? -1 : 0;
    if (in->size > LONG_COPY_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        length = pread(fd, data, in->size, in->offset);
        Py_END_ALLOW_THREADS
    } else {
        length = pread(fd, data, in->size, in->offset);
    }
    if (length < 0)
        return 0;
    if (length > 0 && book(self, self->touch, node, in->offset, length, tenant) < 0)
        return -1;
    *out = (struct fuse_out_header){.len = sizeof *out + length, .unique = header->unique};
    self->reads++;
    return send_reply(self, self->reply, out->len);
}

/* Whether a write there would leave a gap behind the file's end, which Python may fill. Appending asks the kernel once. */
static int leaves_gap(FastPath *self, uint64_t node, uint64_t offset, int fd)
{
    struct stat found;

    if (self->last_node == node && offset <= self->last_end)
        return 0;
    if (fstat(fd, &found) < 0 || offset > (uint64_t)found.st_size)
        return 1;
    self->last_node = node;
    self->last_end = found.st_size;
    return 0;
}

static int serve_write(FastPath *self, const struct fuse_in_header *header, const struct fuse_write_in *in,
                       PyObject *node, int fd)
{
    struct {
        struct fuse_out_header header;
        struct fuse_write_out body;
    } out = {.header = {.len = sizeof out, .unique = header->unique}};
    PyObject *tenant, *known, *set_id;
    int64_t *credit = self->credit.buf, needed = in->size + EDGE_PAGES * self->page_bytes;
    ssize_t length;
    int allowed;

    if (in->write_flags & FUSE_WRITE_KILL_SUIDGID) {
        known = PyDict_GetItemWithError(self->nodes, node);
        set_id = known ? PyObject_GetAttr(known, set_id_name) : NULL;
        Py_XDECREF(set_id); /* True and False live on */
        if (set_id != Py_False)
            return PyErr_Occurred() ? -1 : 0;
    }
    if (*credit < needed)
        return 0;
    if (leaves_gap(self, header->nodeid, in->offset, fd))
        return 0;
    tenant = tenant_of(self, header->pid);
    if (tenant == NULL)
        return PyErr_Occurred() ? -1 : 0;
    allowed = is_allowed(self, node, tenant, in);
    if (allowed != 1)
        return allowed;
    *credit -= needed;
    if (in->size > LONG_COPY_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        length = pwrite(fd, in + 1, in->size, in->offset);
        Py_END_ALLOW_THREADS
    } else {
        length = pwrite(fd, in + 1, in->size, in->offset);
    }
    if (length < (ssize_t)in->size)
        return 0; /* written in part: there may be more space for who does it again */
    if (length > 0 && book(self, self->charge, node, in->offset, length, tenant) < 0)
        return -1;
    if (in->offset + length > self->last_end)
        self->last_end = in->offset + length;
    out.body.size = length;
    self->writes++;
    return send_reply(self, &out, sizeof out);
}

/* The attributes of an inode that has a name and a descriptor, and that no mapping changes behind the kernel's back. What
 * happens in a directory makes the kernel ask for its attributes. No other thread can close the descriptor meanwhile: it
 * would take it out of the dict first, for which it needs the GIL. */
static int serve_getattr(FastPath *self, const struct fuse_in_header *header, PyObject *node, int fd)
{
    struct {
        struct fuse_out_header header;
        struct fuse_attr_out body;
    } out = {.header = {.len = sizeof out, .unique = header->unique}};
    struct fuse_attr *attr = &out.body.attr;
    struct stat found;
    PyObject *known, *may_be_mapped;
    int removed = PyDict_Contains(self->removed, node);

    if (removed != 0)
        return removed < 0 ? -1 : 0;
    known = PyDict_GetItemWithError(self->nodes, node);
    may_be_mapped = known ? PyObject_GetAttr(known, may_be_mapped_name) : NULL;
    Py_XDECREF(may_be_mapped); /* True and False live on */
    if (may_be_mapped != Py_False)
        return PyErr_Occurred() ? -1 : 0;
    if (fstat(fd, &found) < 0)
        return 0;
    out.body.attr_valid = self->entry_seconds;
    attr->ino = header->nodeid; /* the root's number is not tmpfs's */
    attr->size = found.st_size;
    attr->blocks = found.st_blocks;
    attr->atime = found.st_atim.tv_sec;
    attr->mtime = found.st_mtim.tv_sec;
    attr->ctime = found.st_ctim.tv_sec;
    attr->atimensec = found.st_atim.tv_nsec;
    attr->mtimensec = found.st_mtim.tv_nsec;
    attr->ctimensec = found.st_ctim.tv_nsec;
    attr->mode = found.st_mode;
    attr->nlink = found.st_nlink;
    attr->uid = found.st_uid;
    attr->gid = found.st_gid;
    attr->rdev = found.st_rdev;
    attr->blksize = found.st_blksize;
    self->attributes++;
    return send_reply(self, &out, sizeof out);
}

/* A name that is not in a directory, which is asked before each name is made. Names come and go in this very thread, and
 * where a file that nobody uses is deleted, in one step. The kernel may remember the answer. */
static int serve_lookup(FastPath *self, const struct fuse_in_header *header, const char *name, size_t length, PyObject *node,
                        int fd)
{
    struct {
        struct fuse_out_header header;
        struct fuse_entry_out body;
    } out = {.header = {.len = sizeof out, .unique = header->unique}, .body = {.entry_valid = self->entry_seconds}};
    struct stat found;
    int removed = PyDict_Contains(self->removed, node);

    if (removed != 0)
        return removed < 0 ? -1 : 0;
    if (length < 2 || strnlen(name, length) != length - 1 || strchr(name, '/') != NULL) /* no name, or more than one */
        return 0;
    if (fstatat(fd, name, &found, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT)
        return 0;
    self->absent++;
    return send_reply(self, &out, sizeof out);
}

/* 1: answered; 0: for Python; -1: with an exception. */
static int serve(FastPath *self, const char *request, size_t length)
{
    const struct fuse_in_header *header = (const struct fuse_in_header *)request;
    const void *body = header + 1;
    PyObject *node;
    int fd, by_path, answered = 0;

    if (!self->enabled || length < sizeof *header || header->len != length)
        return 0;
    if (header->opcode == FUSE_READ) {
        if (length < sizeof *header + sizeof(struct fuse_read_in))
            return 0;
    } else if (header->opcode == FUSE_WRITE) {
        if (length < sizeof *header + sizeof(struct fuse_write_in) ||
            length != sizeof *header + sizeof(struct fuse_write_in) + ((const struct fuse_write_in *)body)->size)
            return 0;
    } else if (header->opcode == FUSE_GETATTR) {
        if (length < sizeof *header + sizeof(struct fuse_getattr_in))
            return 0;
    } else if (header->opcode != FUSE_LOOKUP) {
        return 0;
    }
    by_path = header->opcode == FUSE_GETATTR || header->opcode == FUSE_LOOKUP;
    node = PyLong_FromUnsignedLongLong(header->nodeid);
    if (node == NULL)
        return -1;
    answered = look_up_int(by_path ? self->paths : self->files, node, &fd);
    if (answered == 1 && header->opcode == FUSE_GETATTR) {
        answered = serve_getattr(self, header, node, fd);
    } else if (answered == 1 && header->opcode == FUSE_LOOKUP) {
        answered = serve_lookup(self, header, body, length - sizeof *header, node, fd);
    } else if (answered == 1) {
        self->busy = 1; /* others see it when a long copy lets go of the GIL */
        answered = header->opcode == FUSE_READ ? serve_read(self, header, body, node, fd)
                                               : serve_write(self, header, body, node, fd);
        self->busy = 0;
    }
    Py_DECREF(node);
    return answered;
}

/* Who waits in poll() has read nothing yet. Told meanwhile that the process ends, it reads nothing more. */
static int wait_for_request(FastPath *self, struct pollfd *device)
{
    int ready;

    __atomic_store_n(&self->rests, 1, __ATOMIC_SEQ_CST);
    ready = poll(device, 1, -1);
    __atomic_store_n(&self->rests, 0, __ATOMIC_SEQ_CST);
    return ready;
}

/* The kernel fails a request (EIO) whose read, or whose answer, ends halfway because the process does. */
static void stay_when_it_ends(FastPath *self)
{
    while (__atomic_load_n(&self->leaves, __ATOMIC_SEQ_CST)) {
        __atomic_store_n(&self->rests, 1, __ATOMIC_SEQ_CST);
        poll(NULL, 0, 1);
    }
    __atomic_store_n(&self->rests, 0, __ATOMIC_SEQ_CST);
}

/* Wait for a request, looking for it first where that pays. The length read, or -1 with errno. Without the GIL. */
static ssize_t receive(FastPath *self, char *request, size_t size)
{
    struct pollfd device = {.fd = self->device_fd, .events = POLLIN};
    long long started = now_ns(), now = started, before;
    ssize_t length;
    unsigned turn;

    stay_when_it_ends(self);
    for (turn = 1; (length = read(self->device_fd, request, size)) < 0 && errno == EAGAIN; turn++) {
        if (!self->look || now - started > LOOK_NS || now < self->sleep_until_ns) {
            if (wait_for_request(self, &device) < 0)
                return -1;
        } else if (turn % LOOKS_PER_YIELD == 0) {
            before = now_ns();
            sched_yield();
            now = now_ns();
            if (now - before > IN_THE_WAY_NS)
                self->sleep_until_ns = now + SLEEP_AT_ONCE_NS;
        }
        stay_when_it_ends(self);
    }
    self->look = now_ns() - started < 2 * LOOK_NS;
    self->in_a_row = turn == 1 ? self->in_a_row + 1 : 0;
    return length;
}

static PyObject *fastpath_next(FastPath *self, PyObject *argument)
{
    Py_buffer request;
    ssize_t length;
    int answered;

    if (PyObject_GetBuffer(argument, &request, PyBUF_WRITABLE) < 0)
        return NULL;
    do {
        Py_BEGIN_ALLOW_THREADS
        length = receive(self, request.buf, request.len);
        Py_END_ALLOW_THREADS
        if (length < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            answered = -1;
        } else if (self->in_a_row > REQUESTS_IN_A_ROW) {
            self->in_a_row = 0;
            answered = 0;
        } else {
            answered = serve(self, request.buf, length);
        }
    } while (answered == 1 && PyErr_CheckSignals() == 0);
    PyBuffer_Release(&request);
    self->last_node = 0;
    if (answered != 0)
        return NULL;
    return PyLong_FromSsize_t(length);
}

static PyObject *fastpath_serve(FastPath *self, PyObject *argument)
{
    Py_buffer request;
    int answered;

    if (PyObject_GetBuffer(argument, &request, PyBUF_SIMPLE) < 0)
        return NULL;
    answered = serve(self, request.buf, request.len);
    PyBuffer_Release(&request);
    if (answered != 1)
        self->last_node = 0;
    return answered < 0 ? NULL : PyBool_FromLong(answered);
}

static int fastpath_init(FastPath *self, PyObject *arguments, PyObject *keywords)
{
    /* The fields of `Given` in sharedfs/ops/shortcut.py, in their order. */
    PyObject *given, *heads;
    PyObject **held[] = {&self->nodes,    &self->paths,   &self->removed,       &self->files, &self->callers, &self->verified,
                         &self->ledger,   &self->settled, &self->settled_bytes, &self->touch, &self->charge,  &self->left,
                         &self->above,    &self->left_above};

    if (keywords != NULL || !PyArg_ParseTuple(arguments, "O!:FastPath", &PyTuple_Type, &given)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "FastPath takes no keyword");
        return -1;
    }
    if (!PyArg_ParseTuple(given, "inKO!O!O!O!OO!O!OOO!OOO!O!O!w*:Given", &self->device_fd, &self->max_read,
                          &self->entry_seconds, &PyDict_Type, &self->nodes, &PyDict_Type, &self->paths, &PyDict_Type,
                          &self->removed, &PyDict_Type, &self->files, &self->callers, &PyDict_Type, &self->verified,
                          &PyTuple_Type, &heads, &self->ledger, &self->settled, &PyDict_Type, &self->settled_bytes,
                          &self->touch, &self->charge, &PyDict_Type, &self->left, &PyDict_Type, &self->above,
                          &PyDict_Type, &self->left_above, &self->credit)) {
        for (size_t i = 0; i < sizeof held / sizeof *held; i++)
            *held[i] = NULL; /* what was parsed is borrowed */
        return -1;
    }
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        Py_INCREF(*held[i]);
    if (self->credit.len != sizeof(int64_t)) {
        PyErr_SetString(PyExc_ValueError, "a credit has eight bytes");
        return -1;
    }
    self->page_bytes = sysconf(_SC_PAGESIZE);
    self->enabled = 1;
    self->reply = PyMem_Malloc(sizeof(struct fuse_out_header) + self->max_read);
    self->heads = PyMem_Calloc(PyTuple_GET_SIZE(heads), sizeof *self->heads);
    if (self->reply == NULL || self->heads == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (; self->cpus < PyTuple_GET_SIZE(heads); self->cpus++) {
        Py_buffer *head = &self->heads[self->cpus];
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(heads, self->cpus), head, PyBUF_SIMPLE) < 0)
            return -1;
        if (head->len != sizeof(uint64_t)) {
            PyBuffer_Release(head);
            PyErr_SetString(PyExc_ValueError, "a head has eight bytes");
            return -1;
        }
    }
    return 0;
}

static void fastpath_dealloc(FastPath *self)
{
    Py_XDECREF(self->nodes);
    Py_XDECREF(self->paths);
    Py_XDECREF(self->removed);
    Py_XDECREF(self->files);
    Py_XDECREF(self->callers);
    Py_XDECREF(self->verified);
    Py_XDECREF(self->ledger);
    Py_XDECREF(self->settled);
    Py_XDECREF(self->settled_bytes);
    Py_XDECREF(self->touch);
    Py_XDECREF(self->charge);
    Py_XDECREF(self->left);
    Py_XDECREF(self->above);
    Py_XDECREF(self->left_above);
    PyBuffer_Release(&self->credit);
    while (self->cpus > 0)
        PyBuffer_Release(&self->heads[--self->cpus]);
    PyMem_Free(self->heads);
    PyMem_Free(self->reply);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef methods[] = {
    {"next", (PyCFunction)fastpath_next, METH_O,
     "next(request) -> length\n\nAnswer requests until one wants Python, or many wait; it is in `request`."},
    {"serve", (PyCFunction)fastpath_serve, METH_O,
     "serve(request) -> answered\n\nAnswer this request, or leave it for Python, untouched."},
    {NULL},
};

static PyMemberDef members[] = {
    {"reads", T_ULONGLONG, offsetof(FastPath, reads), READONLY, "READ requests answered here"},
    {"writes", T_ULONGLONG, offsetof(FastPath, writes), READONLY, "WRITE requests answered here"},
    {"attributes", T_ULONGLONG, offsetof(FastPath, attributes), READONLY, "GETATTR requests answered here"},
    {"absent", T_ULONGLONG, offsetof(FastPath, absent), READONLY, "LOOKUP requests answered here"},
    {"enabled", T_INT, offsetof(FastPath, enabled), 0, "0: leave everything to Python"},
    {"busy", T_INT, offsetof(FastPath, busy), READONLY, "a read or write is under way"},
    {"leaves", T_INT, offsetof(FastPath, leaves), 0, "1: read no more requests, for the process is about to end"},
    {"rests", T_INT, offsetof(FastPath, rests), READONLY, "no request is being read or answered"},
    {NULL},
};

static PyTypeObject type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "sharedfs.ops.fastpath.FastPath",
    .tp_doc = "Answers READ, WRITE, GETATTR and LOOKUP, as far as it can, on the wire. For one thread.",
    .tp_basicsize = sizeof(FastPath),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)fastpath_init,
    .tp_dealloc = (destructor)fastpath_dealloc,
    .tp_methods = methods,
    .tp_members = members,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fastpath",
    .m_doc = "READ, WRITE, GETATTR and LOOKUP in C, as far as all is known that they need.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit_fastpath(void)
{
    PyObject *made = PyModule_Create(&module);

    verified_at_name = PyUnicode_InternFromString("verified_at");
    set_id_name = PyUnicode_InternFromString("set_id");
    may_be_mapped_name = PyUnicode_InternFromString("may_be_mapped");
    sequence_name = PyUnicode_InternFromString("sequence");
    at_name = PyUnicode_InternFromString("at");
    if (made == NULL || verified_at_name == NULL || sequence_name == NULL || at_name == NULL || set_id_name == NULL ||
        may_be_mapped_name == NULL || PyModule_AddType(made, &type) < 0)
        return NULL;
    return made;
}
