package practice

import (
	"io/fs"
	"os"
	"syscall"
	"time"
)

// file is a file of a host opened for writing. It does not embed os.File,
// whose ReadFrom would get round the count of what the disk still holds.
type file struct {
	name   string // on the host
	os     *os.File
	faults *faultBox
}

func (f *file) Read(p []byte) (int, error)              { return f.os.Read(p) }
func (f *file) ReadAt(p []byte, off int64) (int, error) { return f.os.ReadAt(p, off) }
func (f *file) Close() error                            { return f.os.Close() }

func (f *file) Write(p []byte) (int, error) {
	fits := f.faults.write(len(p))
	n, err := f.os.Write(p[:fits])
	if err == nil && fits < len(p) {
		err = f.full()
	}
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	fits := f.faults.write(len(p))
	n, err := f.os.WriteAt(p[:fits], off)
	if err == nil && fits < len(p) {
		err = f.full()
	}
	return n, err
}

func (f *file) full() error {
	return &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
}

// Sync is fsync(2), slowed down when the host's disk is meant to be slow.
func (f *file) Sync() error {
	<-time.After(f.faults.get().SlowSync)
	return f.os.Sync()
}
