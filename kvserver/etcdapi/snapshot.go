package etcdapi

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Snapshot implements etcdserverpb.MaintenanceServer. It does not ask for a
// leader: the last member that is left can still be saved.
func (s *maintenanceService) Snapshot(_ *pb.SnapshotRequest, stream pb.Maintenance_SnapshotServer) error {
	if err := s.sendSnapshot(stream); err != nil {
		return wireError(err)
	}
	return nil
}

func (s *maintenanceService) sendSnapshot(stream pb.Maintenance_SnapshotServer) (err error) {
	image, err := s.store.Image()
	if err != nil {
		return err
	}
	storage := image.Version()
	database, err := s.exporter.Export(stream.Context(), image)
	if err := errors.Join(err, image.Close()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close()) }()
	w := &snapshotWriter{stream: stream, left: database.Size(), sum: sha256.New(), version: storage}
	if _, err := database.WriteTo(w); err != nil {
		return err
	}
	// The checksum is not in the bytes that remain, as in etcd.
	return stream.Send(&pb.SnapshotResponse{Blob: w.sum.Sum(nil), Version: storage})
}

// snapshotWriter sends what is written to it.
type snapshotWriter struct {
	stream  pb.Maintenance_SnapshotServer
	left    int64
	sum     hash.Hash
	version string
}

func (w *snapshotWriter) Write(p []byte) (int, error) {
	w.left -= int64(len(p))
	w.sum.Write(p)
	// gRPC may look at a message after Send has returned.
	response := &pb.SnapshotResponse{RemainingBytes: uint64(max(w.left, 0)), Blob: bytes.Clone(p), Version: w.version}
	if err := w.stream.Send(response); err != nil {
		return 0, err
	}
	return len(p), nil
}
