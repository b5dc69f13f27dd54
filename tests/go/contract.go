package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
)

// The messages of plugin-proto/proto/mosn/plugin.proto, written by hand so that every release of Go's protobuf, from
// 2018 on, reads them.

// Request is what is to be judged.
type Request struct {
	Header  map[string]string `protobuf:"bytes,1,rep,name=header,proto3" protobuf_key:"bytes,1,opt,name=key,proto3" protobuf_val:"bytes,2,opt,name=value,proto3"`
	Trailer map[string]string `protobuf:"bytes,2,rep,name=trailer,proto3" protobuf_key:"bytes,1,opt,name=key,proto3" protobuf_val:"bytes,2,opt,name=value,proto3"`
	Body    []byte            `protobuf:"bytes,3,opt,name=body,proto3"`
	Type    string            `protobuf:"bytes,4,opt,name=type,proto3"`
}

func (m *Request) Reset()         { *m = Request{} }
func (m *Request) String() string { return fmt.Sprintf("%+v", *m) }
func (*Request) ProtoMessage()    {}

// Response is the decision; a status of -1 refuses.
type Response struct {
	Header  map[string]string `protobuf:"bytes,1,rep,name=header,proto3" protobuf_key:"bytes,1,opt,name=key,proto3" protobuf_val:"bytes,2,opt,name=value,proto3"`
	Trailer map[string]string `protobuf:"bytes,2,rep,name=trailer,proto3" protobuf_key:"bytes,1,opt,name=key,proto3" protobuf_val:"bytes,2,opt,name=value,proto3"`
	Body    []byte            `protobuf:"bytes,3,opt,name=body,proto3"`
	Status  int32             `protobuf:"varint,4,opt,name=status,proto3"`
}

func (m *Response) Reset()         { *m = Response{} }
func (m *Response) String() string { return fmt.Sprintf("%+v", *m) }
func (*Response) ProtoMessage()    {}

type caller interface {
	Call(context.Context, *Request) (*Response, error)
}

var service = grpc.ServiceDesc{
	ServiceName: "proto.Plugin",
	HandlerType: (*caller)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Call", Handler: call}},
	Metadata:    "plugin.proto",
}

func call(server interface{}, ctx context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor) (interface{}, error) {
	request := new(Request)
	if err := decode(request); err != nil {
		return nil, err
	}
	return server.(caller).Call(ctx, request)
}
