package etcdapi

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine/auth"
	"muster/kvserver/token"
	"muster/kvserver/watch"
)

type watchService struct {
	pb.UnsafeWatchServer
	*api
	watches *watch.Registry
}

var _ pb.WatchServer = (*watchService)(nil)

// Watch implements etcdserverpb.WatchServer. A client that has no more to ask
// may close its side and goes on to receive.
func (s *watchService) Watch(client pb.Watch_WatchServer) error {
	ctx := client.Context()
	// A member that has just started would show its past as the present.
	if err := s.awaitRead(ctx, true); err != nil {
		return watchError(ctx, err)
	}
	stream := s.watches.NewStream()
	defer stream.Close()
	ended := make(chan error, 3)
	go func() {
		if err := s.receive(ctx, client, stream); !errors.Is(err, io.EOF) {
			ended <- err
		}
	}()
	go func() { ended <- s.send(ctx, client, stream) }()
	go func() { ended <- s.notify(ctx, stream) }()
	// Nobody is waited for: Recv and Send return when the call does.
	select {
	case err := <-ended:
		return watchError(ctx, err)
	case <-ctx.Done():
		return watchError(ctx, ctx.Err())
	}
}

// watchError tells the client that canceled so in etcd's words, and passes on
// why the server canceled.
func watchError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return rpctypes.ErrGRPCWatchCanceled
	case errors.Is(err, watch.ErrClosed):
		return rpctypes.ErrGRPCStopped // the client goes on with another member
	}
	return wireError(err)
}

func (s *watchService) receive(ctx context.Context, client pb.Watch_WatchServer, stream *watch.Stream) error {
	for {
		request, err := client.Recv()
		if err != nil {
			return err
		}
		// As in etcd, what is not understood is passed over.
		switch {
		case request.GetCreateRequest() != nil:
			err = s.create(ctx, request.GetCreateRequest(), stream)
		case request.GetCancelRequest() != nil:
			err = stream.Cancel(ctx, request.GetCancelRequest().GetWatchId())
		case request.GetProgressRequest() != nil:
			err = stream.RequestProgress(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// create asks for the permission after looking at the start, as etcd does.
func (s *watchService) create(ctx context.Context, r *pb.WatchCreateRequest, stream *watch.Stream) error {
	if r.GetStartRevision() >= 0 {
		if err := s.mayWatch(ctx, r); err != nil {
			return stream.Refuse(ctx, refusal(err))
		}
	}
	return stream.Create(ctx, watchRequest(r))
}

// refusal is the reason etcd gives for err: the error as gRPC prints it.
func refusal(err error) string {
	for _, told := range []error{token.ErrInvalid, auth.ErrAuthOldRevision, auth.ErrUserEmpty} {
		if errors.Is(err, told) {
			return wireError(err).Error()
		}
	}
	return rpctypes.ErrGRPCPermissionDenied.Error()
}

func watchRequest(r *pb.WatchCreateRequest) watch.Request {
	request := watch.Request{
		ID: r.GetWatchId(), Key: r.GetKey(), End: r.GetRangeEnd(), Start: r.GetStartRevision(),
		PrevKV: r.GetPrevKv(), Progress: r.GetProgressNotify(), Fragment: r.GetFragment(),
	}
	for _, filter := range r.GetFilters() {
		request.NoPut = request.NoPut || filter == pb.WatchCreateRequest_NOPUT
		request.NoDelete = request.NoDelete || filter == pb.WatchCreateRequest_NODELETE
	}
	return request
}

func (s *watchService) send(ctx context.Context, client pb.Watch_WatchServer, stream *watch.Stream) error {
	for {
		responses, err := stream.Next(ctx)
		if err != nil {
			return err
		}
		header := s.header()
		for i := range responses {
			message := watchResponse(header, &responses[i])
			if !responses[i].Fragment {
				err = client.Send(message)
			} else {
				err = sendFragments(message, s.limits.MaxRequestBytes+grpcOverhead, client.Send)
			}
			if err != nil {
				return err
			}
			responses[i] = watch.Response{} // a slow client holds on to no more than it has to
		}
	}
}

// notify reports progress at intervals, which differ a little between streams
// so that not all are due at once.
func (s *watchService) notify(ctx context.Context, stream *watch.Stream) error {
	interval := s.limits.WatchProgressNotifyInterval
	interval += rand.N(interval / 10) //nolint:gosec // nothing to guess
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := stream.NotifyProgress(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watchResponse is r as a message; the header lacks the revision.
func watchResponse(header *pb.ResponseHeader, r *watch.Response) *pb.WatchResponse {
	return &pb.WatchResponse{
		Header: &pb.ResponseHeader{
			ClusterId: header.ClusterId, MemberId: header.MemberId, RaftTerm: header.RaftTerm,
			Revision: r.Revision,
		},
		WatchId:         r.WatchID,
		Created:         r.Created,
		Canceled:        r.Canceled,
		CancelReason:    r.Reason,
		CompactRevision: r.CompactRevision,
		Events:          r.Events,
	}
}

// eventsField is the number of WatchResponse.events (rpc.proto).
const eventsField = 11

// sendFragments sends a message that is not smaller than limit in parts that
// are, as far as single events allow. All but the last are marked.
func sendFragments(message *pb.WatchResponse, limit int, send func(*pb.WatchResponse) error) error {
	if proto.Size(message) < limit {
		return send(message)
	}
	events := message.Events
	message.Events, message.Fragment = nil, true
	empty := proto.Size(message)
	for {
		n, size := 0, empty
		for ; n < len(events); n++ {
			size += protowire.SizeTag(eventsField) + protowire.SizeBytes(proto.Size(events[n]))
			if n > 0 && size >= limit {
				break
			}
		}
		// A message belongs to gRPC once it is sent.
		part := &pb.WatchResponse{Header: message.Header, WatchId: message.WatchId, Events: events[:n], Fragment: n < len(events)}
		if err := send(part); err != nil {
			return err
		}
		if events = events[n:]; len(events) == 0 {
			return nil
		}
	}
}
